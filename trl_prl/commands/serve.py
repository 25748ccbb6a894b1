"""`trl-prl serve`: a process reward on this machine for trainers and searches on others.

TRL_PRL_TOKEN=... trl-prl serve --verifier Qwen/Qwen2.5-Math-PRM-7B --host 0.0.0.0 --port 8000
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from trl_prl.jobs.config import VerifierOptions, option, require
from trl_prl.prms.remote import TOKEN_VARIABLE


@dataclass(frozen=True)
class Options(VerifierOptions):
    """What to serve, and where.

    Every field is an option of `trl-prl serve` and a key of its YAML file.

    Raises:
        `ValueError`: When no verifier is given.
    """

    host: str = option("127.0.0.1", "address to listen at; by default this machine alone")
    port: int = option(8000, "port to listen at")
    max_batch: int = option(256, "most solutions of a batch")

    def __post_init__(self) -> None:
        require(self, "verifier")

    def kept(self) -> str:
        """What becomes of the clients when the service is stopped, in words."""
        return "Clients try again until their `max_wait` is over; started again at this address, it answers them."


def run(options: Options) -> int:
    """Serve until interrupted.

    Args:
        options ([`Options`]):
            What to serve.

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
    if options.host not in ("127.0.0.1", "localhost", "::1") and not token:
        raise ValueError(
            f"The service would listen at {options.host} without a token, so that whoever reaches this machine could "
            f"use it. Set the environment variable {TOKEN_VARIABLE} here and for the clients, or listen at 127.0.0.1."
        )
    # Here, so that `--help` answers without torch.
    from trl_prl.jobs.options import quiet_libraries
    from trl_prl.prms.load import load_verifier

    quiet_libraries()
    app = create_app(load_verifier(options), token=token, max_batch=options.max_batch)
    print(f"Serving {options.verifier} at http://{options.host}:{options.port}, documented at /docs", flush=True)
    uvicorn.run(app, host=options.host, port=options.port, log_level="warning")
    return 0
