"""`trl-prl serve`: a process reward on this machine for trainers and searches on others.

TRL_PRL_TOKEN=... trl-prl serve --verifier Qwen/Qwen2.5-Math-PRM-7B --host 0.0.0.0 --port 8000
"""

from __future__ import annotations

import argparse
import os

from trl_prl.prms.remote import TOKEN_VARIABLE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--verifier", required=True, help="folder, hub id or module:name, with options behind commas")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen at (default: 8000)")
    parser.add_argument("--max_batch", type=int, default=256, help="most solutions of a batch (default: 256)")
    parser.add_argument("--batch_tokens", type=int, default=16384, help="most tokens of a forward (default: 16384)")
    parser.add_argument("--device", help="device of the model (default: the accelerator if there is one)")
    parser.add_argument("--dtype", default="auto", help="precision, such as bfloat16 (default: that of the weights)")


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted.

    Args:
        args (`argparse.Namespace`):
            Parsed arguments.

    Returns:
        `int`: 0.

    Raises:
        `ImportError`: If the packages of the extra `serve` are not installed.
        `ValueError`: If the service would be open to other machines without a token.
    """
    try:
        import uvicorn

        from trl_prl.prms.server import create_app
    except ImportError as error:
        raise ImportError(
            f"Serving needs the package '{error.name}', which is not installed. Install it with "
            "`pip install 'trl-prl[serve]'`."
        ) from error
    token = os.environ.get(TOKEN_VARIABLE)
    if args.host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise ValueError(
            f"The service would listen at {args.host} without a token, so that whoever reaches this machine could use "
            f"it. Set the environment variable {TOKEN_VARIABLE} here and for the clients, or listen at 127.0.0.1."
        )
    # Here, so that `--help` answers without torch.
    from trl_prl.jobs.options import quiet_libraries
    from trl_prl.prms.load import default_device, load_process_reward

    quiet_libraries()
    process_reward = load_process_reward(
        args.verifier,
        device=args.device or default_device(),
        dtype=args.dtype,
        max_batch_tokens=args.batch_tokens,
    )
    app = create_app(process_reward, token=token, max_batch=args.max_batch)
    print(f"Serving {args.verifier} at http://{args.host}:{args.port}, documented at /docs", flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
    return 0
