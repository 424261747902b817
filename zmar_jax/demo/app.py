"""The page's server: every handler turns a request into a call of the session, and back."""

import contextlib
import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zmar_jax.data.sample import TITLE
from zmar_jax.demo.errors import DemoError, gone
from zmar_jax.demo.jobs import BROKEN, Job, Jobs
from zmar_jax.demo.pictures import Picture, Pictures, safe_name
from zmar_jax.demo.studio import EXPECTED, Studio
from zmar_jax.demo.wishes import MOST_SAMPLES, wish
from zmar_jax.imaging.images import SUFFIXES, ImageError

PAGE: Path = Path(__file__).parent / "page"
MB = 1_000_000
WEIGHTS_MB = 4000
WEIGHTS_SUFFIXES = (".safetensors", ".pth")
_CSP = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; form-action 'none'"


class Demo:
    """The handlers of one server.

    Args:
      folder: an empty one for all that visitors bring; it may be removed at the end.
      studio: does the work.
      upload_mb: how large a picture's file may be.
    """

    def __init__(self, folder: Path, studio: Studio, upload_mb: int = 64):
        self.studio: Studio = studio
        self.upload_mb: int = upload_mb
        self.pictures: Pictures = Pictures(folder / "pictures")
        self.weights: Path = folder / "weights"
        self.pictures.folder.mkdir()
        self.weights.mkdir()
        self.jobs: Jobs = Jobs(studio.work, EXPECTED)

    def routes(self) -> list[Route | Mount]:
        return [
            Route("/", self.index),
            Mount("/page", StaticFiles(directory=PAGE)),
            Route("/api/about", self.about),
            Route("/api/pictures", self.add_picture, methods=["POST"]),
            Route("/api/sample", self.add_sample, methods=["POST"]),
            Route("/api/pictures/{id}/before.png", self.before),
            Route("/api/pictures/{id}/mask", self.set_mask, methods=["PUT"]),
            Route("/api/pictures/{id}/jobs", self.add_job, methods=["POST"]),
            Route("/api/jobs/{id}", self.job, methods=["GET", "DELETE"]),
            Route("/api/jobs/{id}/{file}", self.result),
            Route("/api/weights", self.add_weights, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": _CSP})

    async def about(self, request: Request) -> Response:
        return JSONResponse(
            {
                "weights": self.studio.shelf.names(),
                "own_weights": self.studio.shelf.free,
                "upload_mb": self.upload_mb,
                "suffixes": SUFFIXES,
                "most_samples": MOST_SAMPLES,
                "sample": TITLE,
            }
        )

    async def add_picture(self, request: Request) -> Response:
        name = safe_name(request.query_params.get("name", ""))
        upload = self.pictures.place() / "upload"
        try:
            await _receive(request, upload, self.upload_mb, name)
        except BaseException:
            upload.parent.rmdir()
            raise
        return _told(await run_in_threadpool(self.pictures.add, name, upload))

    async def add_sample(self, request: Request) -> Response:
        return _told(await run_in_threadpool(self.pictures.add_sample))

    async def before(self, request: Request) -> Response:
        return _file(self._picture(request).shown, "picture")

    async def set_mask(self, request: Request) -> Response:
        picture = self._picture(request)
        upload = picture.folder / "mask.upload"
        await _receive(request, upload, self.upload_mb, "the painted mask")
        share = await run_in_threadpool(self.pictures.set_mask, picture, upload)
        return JSONResponse({"share": share})

    async def add_job(self, request: Request) -> Response:
        try:
            form = json.loads(await request.body())
        except ValueError as e:
            raise DemoError("expected JSON") from e
        wanted = wish(form)
        self.studio.shelf.find(wanted.weights)
        return JSONResponse(_progress(self.jobs.submit(self._picture(request), wanted)), 201)

    async def job(self, request: Request) -> Response:
        job = self.jobs.get(request.path_params["id"])
        if request.method == "DELETE":
            self.jobs.cancel(job)
        return JSONResponse(_progress(job))

    async def result(self, request: Request) -> Response:
        job, file = self.jobs.get(request.path_params["id"]), request.path_params["file"]
        if job.result is None or file not in ("restored", "lost", "spread"):
            raise gone("result")
        path = getattr(job.result, file)
        name = job.picture.download_name if "download" in request.query_params else None
        return _file(path, "result", name)

    async def add_weights(self, request: Request) -> Response:
        if not self.studio.shelf.free:
            raise DemoError("this server takes no weights of visitors", 403)
        name = safe_name(request.query_params.get("name", ""))
        if not name.endswith(WEIGHTS_SUFFIXES):
            raise DemoError(f"{name}: weights are {' or '.join(WEIGHTS_SUFFIXES)} files")
        folder = self.weights / str(len(list(self.weights.iterdir())))
        folder.mkdir()
        await _receive(request, folder / name, WEIGHTS_MB, name)
        return JSONResponse({"name": self.studio.shelf.add(name, folder / name)}, 201)

    def _picture(self, request: Request) -> Picture:
        return self.pictures.get(request.path_params["id"])


class SameOrigin:
    """Refuses what another site's page sends here: it could not read the answer, but have work
    done."""

    def __init__(self, app: ASGIApp):
        self.app: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            origin = request.headers.get("origin")
            if origin and urlsplit(origin).netloc != request.headers.get("host"):
                refused = JSONResponse({"message": "only this page may ask for that"}, 403)
                return await refused(scope, receive, send)
        await self.app(scope, receive, functools.partial(_send, send))


async def _send(send: Send, message: Message) -> None:
    if message["type"] == "http.response.start":
        message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
    await send(message)


def make_app(demo: Demo, hosts: list[str]) -> Starlette:
    """The server as an ASGI application; its jobs end when it does.

    Args:
      hosts: names that the server may be called by, or `*`: a page elsewhere cannot point a name
        of its own at it.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(demo.jobs.close)

    return Starlette(
        routes=demo.routes(),
        lifespan=lifespan,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(SameOrigin)],
        exception_handlers=_handlers(),
    )


def _handlers() -> dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]:
    async def said(request: Request, error: Exception) -> Response:
        return JSONResponse({"message": str(error)}, getattr(error, "status", 422))

    async def left(request: Request, error: Exception) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    async def broken(request: Request, error: Exception) -> Response:
        return JSONResponse({"message": BROKEN}, 500)

    return {DemoError: said, ImageError: said, ClientDisconnect: left, Exception: broken}


async def _receive(request: Request, path: Path, most_mb: int, name: str) -> None:
    """Writes a request's body to a file; DemoError where it is too large, and nothing is left."""
    taken = 0
    too_large = DemoError(f"{name}: more than {most_mb} MB; make it smaller", 413)
    if int(request.headers.get("content-length", 0)) > most_mb * MB:
        raise too_large
    try:
        with path.open("wb") as file:
            async for chunk in request.stream():
                taken += len(chunk)
                if taken > most_mb * MB:
                    raise too_large
                await run_in_threadpool(file.write, chunk)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _file(path: Path | None, what: str, name: str | None = None) -> Response:
    if path is None or not path.is_file():
        raise gone(what)
    kept = {"Cache-Control": "private, max-age=3600"}
    return FileResponse(path, media_type="image/png", filename=name, headers=kept)


def _told(picture: Picture) -> Response:
    told = {"id": picture.id, "name": picture.name, "download_name": picture.download_name}
    size = {"height": picture.height, "width": picture.width}
    return JSONResponse(told | size | {"before": f"/api/pictures/{picture.id}/before.png"}, 201)


def _progress(job: Job) -> dict[str, object]:
    told: dict[str, object] = {key: getattr(job, key) for key in ("id", "state", "stage", "share")}
    told |= {"message": job.message, "seconds": round(job.seconds, 2), "cancelling": job.asked}
    if job.result is not None:
        values = dataclasses.asdict(job.result)
        files = ("restored", "lost", "spread")
        urls = {f: values[f] and f"/api/jobs/{job.id}/{f}" for f in files}
        told["result"] = values | urls
    return told
