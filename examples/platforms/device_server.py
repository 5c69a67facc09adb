"""TVM's RPC server for a device, which goes on after a session that crashed or whose client was killed.

It needs no pruneaug on the device: pip install "apache-tvm>=0.27,<0.28" psutil cloudpickle

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1", help="the device's own address in the trusted network")
    parser.add_argument("--port", type=int, default=9090)
    parser.add_argument("--tracker", help="host:port of a tracker that lends this device to others")
    parser.add_argument("--key", default="", help="what the tracker calls devices like this one")
    arguments = parser.parse_args()
    tracker = None
    if arguments.tracker:
        host, _, port = arguments.tracker.rpartition(":")
        tracker = (host, int(port))
    start = partial(
        rpc.Server, arguments.host, arguments.port, arguments.port + 1, server_init_callback=survive_sessions
    )
    server = start(tracker_addr=tracker, key=arguments.key)
    print(f"serving on {arguments.host}:{server.port}", flush=True)
    server.proc.join()


if __name__ == "__main__":
    main()
