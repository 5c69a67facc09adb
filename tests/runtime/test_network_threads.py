"""Compiled networks and threads: of the callers, and of PyTorch."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from float64_networks import assert_tree_close, compile_model, conv, image, in_float64, seeded
from torch import nn

from pruneaug.errors import InputError
from pruneaug.network.layers import find_layers
from pruneaug.runtime.compiler import compile_network
from pruneaug.runtime.graph import export_program


def test_networks_that_run_at_once_leave_pytorch_its_threads(builder):
    model, inputs = seeded(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8))), (image(1, 3, 16, 16),)
    network, program = find_layers(model, inputs), export_program(model, inputs)
    pair = [compile_network(program, network, {}, {}, builder.target) for _ in range(2)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda index: pair[index % 2](*inputs), range(40)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_pytorch_keeps_its_number_of_threads(builder):
    model, inputs = seeded(nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2))), (image(1, 3, 8, 8),)
    compiled = compile_network(export_program(model, inputs), find_layers(model, inputs), {}, {}, builder.target)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        compiled(*inputs)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_several_threads_may_call_at_once(builder):
    model = seeded(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4), nn.Flatten(), nn.Linear(196, 3)))
    inputs = [image(1, 3, 7, 7) * scale for scale in range(12)]
    compiled = compile_network(
        export_program(model, (inputs[0],)), find_layers(model, (inputs[0],)), {}, {}, builder.target
    )  # fmt: skip
    with ThreadPoolExecutor(3) as pool:
        for x, got in zip(inputs, pool.map(compiled, inputs)):
            assert_tree_close(got, in_float64(model, {}, (x,)))


def test_several_threads_may_compile_at_once():
    models = [seeded(nn.Sequential(conv(3, 4), nn.LeakyReLU(), conv(4, outputs))) for outputs in (2, 3, 4)]
    x = image(1, 3, 5, 5)
    with ThreadPoolExecutor(3) as pool:
        for model, compiled in zip(models, pool.map(lambda model: compile_model(model, (x,)), models)):
            assert_tree_close(compiled(x), in_float64(model, {}, (x,)))


def test_a_forked_process_runs_networks_in_new_threads_and_says_so_in_the_old_one():
    x = image(1, 3, 5, 5)
    compiled = compile_model(seeded(nn.Sequential(conv(3, 4))), (x,))
    want = compiled(x)
    child = os.fork()
    if child == 0:
        signal.alarm(300)  # what would wait forever
        status = 1
        try:
            compiled(x)
        except InputError as error:
            results = []
            thread = threading.Thread(target=lambda: results.append(compiled(x)))
            thread.start()
            thread.join()
            status = 0 if "new thread" in str(error) and torch.equal(results[0], want) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
