"""The paths of the server."""

from typing import Any, TextIO

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from pard2 import __version__
from pard2.engine.methods import METHODS
from pard2.serve.access_log import AccessLog
from pard2.serve.chat_page import PATHS, add_page
from pard2.serve.connection import ClientGone
from pard2.serve.engines import public_name
from pard2.serve.errors import ApiError
from pard2.serve.gate import CLIENT_GONE, MISTAKE, Gate, error_response
from pard2.serve.schema import DetokenizeRequest, parse
from pard2.serve.service import Service


def new_app(service: Service, log: TextIO | None = None) -> ASGIApp:
    """The API over a service, behind its key and its log, by default standard output."""
    options = service.options
    # FastAPI's own pages load scripts from the network.
    app = FastAPI(title="pard2", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_answers(app, service)
    _add_models(app, service)
    _add_state(app, service)
    add_page(app)
    opened = (*PATHS, "/health", *(() if options.protect_metrics else ("/metrics",)))
    gate: ASGIApp = Gate(app, service.metrics, AccessLog(options.log_format, log), options.api_key, opened)
    if options.allow_origin:
        # Outside of the gate: a browser asks first, and without the key.
        gate = CORSMiddleware(
            gate, allow_origins=list(options.allow_origin), allow_methods=["*"], allow_headers=["*"], expose_headers=["X-Request-Id", "Retry-After"]
        )
    return gate


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> Response:
        request.scope["pard2"].setdefault("error", error.message)
        return error_response(error)

    @app.exception_handler(ClientGone)
    async def to_nobody(request: Request, _: ClientGone) -> Response:
        request.scope["pard2"]["status"] = CLIENT_GONE
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(HTTPException)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        response = error_response(ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def mistake(request: Request, error: Exception) -> Response:
        return error_response(MISTAKE)  # the gate writes down which


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await service.chat(request)

    @app.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await service.complete(request)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        ids, names = await service.read(request, service.preparer.tokens)
        return JSONResponse({"count": len(ids), "max_model_len": service.engines.target.context_length, "tokens": ids, "token_strs": names})

    @app.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        def text(body: bytes) -> str:
            tokens = parse(DetokenizeRequest, body).tokens
            known = service.engines.target.vocab_size
            if wrong := [token for token in tokens if not 0 <= token < known]:
                raise ApiError(400, f"`tokens` holds {wrong[0]}; the vocabulary ends at {known - 1}", param="tokens")
            return str(service.preparer.tokenizer.decode(tokens))

        return JSONResponse({"prompt": await service.read(request, text)})


def _add_models(app: FastAPI, service: Service) -> None:
    def described() -> dict[str, Any]:
        target, draft, first = service.engines.target, service.engines.draft, service.engines.first
        return {
            "id": service.name,
            "object": "model",
            "created": service.created,
            "owned_by": "pard2",
            "root": public_name(target.name),
            "max_model_len": target.context_length,
            "pard2": {
                "method": first.method,
                "methods": {name: METHODS[name].title for name in service.engines.methods},
                "draft": None if draft is None else public_name(draft.name),
                "draft_tokens": first.draft_tokens,
            },
        }

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [described()]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != service.name:
            raise ApiError(404, f"there is no such model here; this is {service.name!r}", param="model", code="model_not_found")
        return JSONResponse(described())


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if service.ready else "stopping"}, 200 if service.ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
