"""TVM's RPC server for a device, which goes on after a session that crashed or whose client was killed.

It needs no pruneaug on the device: pip install "apache-tvm>=0.27,<0.28" psutil cloudpickle
With --gpu it measures on an NVIDIA GPU, and needs the pruneaug of its clients: pip install "pruneaug[tvm,gpu,serve]"

Whoever reaches the port can run any code on the device: use it in networks that you trust.
"""

import argparse
import os
from functools import partial

from tvm import rpc


def survive_sessions() -> None:
    """Let the listening process outlive its sessions: TVM's own ends with one that ends badly."""
    from tvm.rpc import server

    serving, folder = server._serving, os.getcwd()

    def serve(sock, *arguments):
        try:
            serving(sock, *arguments)
        except RuntimeError as error:
            server.logger.warning("a session ended badly: %s", error)
        finally:
            sock.close()
            os.chdir(folder)  # out of the session's folder, which is gone

    server._serving = serve


def begin(*, gpu: bool) -> None:
    """What the server's process does first. `gpu`: let clients measure on the GPU of this machine."""
    survive_sessions()
    if gpu:
        from pruneaug.profiler.remote.gpu_server import register

        register()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="the device's own address in the trusted network")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--tracker", help="host:port of a tracker that lends this device to others")
    parser.add_argument("--key", default="", help="what the tracker calls devices like this one")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU of this machine")
    arguments = parser.parse_args()
    tracker = None
    if arguments.tracker:
        host, _, port = arguments.tracker.rpartition(":")
        tracker = (host, int(port))
    server = rpc.Server(
        arguments.host,
        arguments.port,
        arguments.port + 1,
        tracker_addr=tracker,
        key=arguments.key,
        server_init_callback=partial(begin, gpu=arguments.gpu),
    )
    print(f"serving on {arguments.host}:{server.port}", flush=True)
    server.proc.join()


if __name__ == "__main__":
    main()
