"""A model that answers: `firsthand serve` over HTTP, `firsthand chat` in the terminal."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from firsthand.app.cli.options import StepOption
from firsthand.app.cli.stack import one_sentence
from firsthand.course.errors import FirsthandError

if TYPE_CHECKING:
    from firsthand.llm.inference.opening import Opened
    from firsthand.llm.model.parts import Parts

# After Ctrl-C the texts on their way have so long to end.
GRACE_SECONDS = 5
BACKLOG = 2048
# A thread of the engine that wants the interpreter waits so long for the one that answers clients.
SWITCH_SECONDS = 0.001

ServedArgument = Annotated[
    Path,
    typer.Argument(
        help="What `firsthand quantize` wrote, a run, a folder in Hugging Face's format, or a "
        "GGUF file.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(help="cpu: INT8; torch: PyTorch; auto: the first wherever it can run the model."),
]
ThreadsOption = Annotated[int, typer.Option(help="Of the CPU engine; 0 tries which is best.")]
ContextOption = Annotated[int, typer.Option(help="Tokens of a text; 0 is all the model has.")]


def serve(
    model: ServedArgument,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000,
    slots: Annotated[int, typer.Option(help="Texts at once.")] = 8,
    context: ContextOption = 0,
    api_key: Annotated[
        str,
        typer.Option(
            envvar="FIRSTHAND_API_KEY",
            help="That clients must send. In the environment no other user sees it.",
            show_envvar=True,
        ),
    ] = "",
    engine: EngineOption = "auto",
    threads: ThreadsOption = 0,
    waiting: Annotated[int, typer.Option(help="Texts that may wait; the next is refused.")] = 256,
    timeout: Annotated[float, typer.Option(help="Seconds for a text, its wait included.")] = 600.0,
    name: Annotated[str, typer.Option(help="That requests give. Default: the folder's.")] = "",
    step: StepOption = 0,
) -> None:
    """Serve a model over HTTP, with OpenAI's interface.

    Also /health, and /metrics for Prometheus. Ctrl-C ends it.
    """
    with one_sentence():
        local = _is_loopback(host)
        if not local and not api_key:
            raise FirsthandError(
                f"{host} can be reached from other machines: set FIRSTHAND_API_KEY, or listen on "
                "127.0.0.1."
            )
        if slots < 1 or waiting < 0 or not timeout > 0:
            raise FirsthandError(
                f"At least one slot, no fewer than 0 texts that wait and some seconds; not {slots},"
                f" {waiting} and {timeout:g}."
            )
        if not local:
            print(
                "This server can be reached from other machines, and HTTP hides nothing: put a "
                "proxy with TLS before it.",
                file=sys.stderr,
            )
        listener = _listener(host, port)
        with listener:
            import uvicorn

            from firsthand.llm.inference.scheduler import Scheduler
            from firsthand.llm.inference.server.app import create_app
            from firsthand.llm.inference.server.settings import ServerSettings
            from firsthand.llm.inference.service import Service

            opened = opened_model(model, engine, slots, context, threads, step)
            service = Service(
                Scheduler(opened.engine, opened.tokenizer), waiting=waiting, seconds=timeout
            )
            settings = ServerSettings(
                model=name or model.resolve().name,
                fingerprint=opened.fingerprint,
                api_key=api_key,
                local_only=local and not api_key,
            )
            config = uvicorn.Config(
                create_app(service, settings),
                log_level="warning",
                access_log=False,
                lifespan="on",
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
            listener.listen(BACKLOG)
            shown = f"[{host}]" if ":" in host else host
            print(
                f"{settings.model}: {opened.how}; {slots} slots of {opened.engine.capacity} "
                f"tokens.\nhttp://{shown}:{listener.getsockname()[1]}/v1  (Ctrl-C ends)",
                flush=True,
            )
            sys.setswitchinterval(SWITCH_SECONDS)
            try:
                uvicorn.Server(config).run(sockets=[listener])
            except KeyboardInterrupt:  # told again once all is closed; here it is the usual end
                pass
            finally:
                opened.engine.close()


def opened_model(
    model: Path, engine: str, slots: int, context: int, threads: int, step: int
) -> Opened:
    """The model that the arguments of a command name, on its engine."""
    from firsthand.llm.inference.opening import open_engine

    def parts() -> Parts:
        from firsthand.llm.parts import FAST

        return FAST

    if not model.exists():
        raise FirsthandError(f"{model}: no such file or folder.")
    return open_engine(
        model, parts, engine, slots=slots, capacity=context, threads=threads, step=step
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listener(host: str, port: int) -> socket.socket:
    """A bound socket: a port that is taken is told before a model is loaded."""
    if not 0 <= port <= 65535:
        raise FirsthandError(f"A port is between 0 and 65535; not {port}.")
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise FirsthandError(f"{host}: {error.strerror}.") from None
    listener = socket.socket(family, kind, number)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise FirsthandError(f"{host}, port {port}: {error.strerror}.") from None
    return listener
