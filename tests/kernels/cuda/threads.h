// What the instructions of the emulator share; see emulator.h.
#pragma once
#include <ucontext.h>

#include <memory>
#include <vector>

#include "emulator.h"

namespace gpu {

struct Bytes {
  uint32_t at, size;
};

enum class State { ready, at_instruction, at_barrier, done };

struct Copy {
  uint32_t to;
  const uint8_t* from;
  uint32_t size;
  int width;
};

struct Thread {
  int index;
  State state;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::vector<std::vector<Copy>> groups;
  std::vector<Copy> open;
  std::vector<Bytes> unfenced;  // what it has written to shared memory since its last proxy fence
  const void* operands;
};

extern Thread* current;
extern std::vector<Thread> threads;
extern std::vector<int> arrived_at_warp, arrived_at_warpgroup;  // threads of each that wait for the others
extern long shared_size;
extern bool eager;

void yield(State state);
uint8_t* shared_at(uint32_t address, size_t size);
void store_shared(uint32_t to, const void* from, uint32_t size);
float element(const uint32_t* words, int index, int kind);
float towards_zero(double sum);  // as tensor cores round their sums

// Products of warpgroups: shared memory as they see it, where what was written since the writer's last proxy fence is
// undefined, and products that are not done yet.
void reset_warpgroups(int count);
void forget_unfenced(uint32_t at, uint32_t size);
void check_finished();

// What all threads of a warp or a warpgroup do together: the last that comes does it for all, `operands` of each at hand.
template <int count = 32, typename Operands, typename Together>
void together(Operands& own, Together body) {
  int first = current->index / count * count;
  int& arrived = (count == 32 ? arrived_at_warp : arrived_at_warpgroup)[first / count];
  current->operands = &own;
  if (++arrived < count) return yield(State::at_instruction);
  arrived = 0;
  Operands* lanes[count];
  for (int lane = 0; lane < count; ++lane) {
    Thread& thread = threads[first + lane];
    if (&thread != current && thread.state != State::at_instruction)
      fail("a lane is missing at an instruction of its warp");
    lanes[lane] = static_cast<Operands*>(const_cast<void*>(thread.operands));
    thread.state = State::ready;
  }
  body(lanes);
}

}  // namespace gpu
