"""The `app` command: its options, and what it does with them. The page itself lives in `hf_cxr.serving.app`."""

from __future__ import annotations

import argparse
import socket
from importlib.util import find_spec

from hf_cxr.cli.options import Parser, count
from hf_cxr.utils.places import check_checkpoint, is_export


def define_app(parser: Parser) -> None:
    """Show a page on which a checkpoint can be tried: images in, text out. Research use only, not for diagnosis.

    hf-cxr app runs/iu --port 7860
    """
    parser.add_argument("checkpoint", help="run folder, Hub id or what hf-cxr export wrote")
    parser.option("--port", "port to listen on (default: the first free one from 7860 on)", type=count)
    parser.option(
        "--host",
        "address to listen on; 0.0.0.0 lets other machines in, and there is no password",
        default="127.0.0.1",
    )


def run_app(options: argparse.Namespace) -> None:
    if not is_export(options.checkpoint):
        check_checkpoint(options.checkpoint)
    if not find_spec("gradio"):
        raise ImportError("the app needs Gradio; install it with: pip install 'hf-cxr[app]'")
    try:
        socket.create_server((options.host, options.port or 0)).close()
    except (OSError, OverflowError) as error:
        told = f"{options.host}, port {options.port or 'any'}: cannot listen there ({error})"
        raise ValueError(f"{told}; choose another --port or --host") from None
    from hf_cxr.serving.app import serve
    from hf_cxr.serving.runner import open_checkpoint

    serve(options.checkpoint, open_checkpoint(options.checkpoint), options.host, options.port)
