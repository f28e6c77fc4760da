"""Health, readiness, metrics, and the page that problems point to."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from instant_env.service.operations import Code, Refusal
from instant_env.service.web import answers
from instant_env.service.web.context import App, Reader
from instant_env.service.web.problems import DOCS, documented
from instant_env.settings import ROOT

router = APIRouter(tags=["health"])


@router.get("/healthz", operation_id="healthz", summary="Whether the process answers")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Whether requests can be served",
    responses={200: {"model": answers.HealthAnswer}, 503: {"model": answers.HealthAnswer}},
)
async def readyz(web: App) -> Response:
    health = await web.operations.health()
    ready = health.ready and not web.stopping.is_set()
    answer = answers.HealthAnswer(ready=ready, checks=dict(health.checks))
    return answers.json_response(answer, 200 if ready else 503)


@router.get(
    "/metrics",
    operation_id="metrics",
    summary="Prometheus metrics; needs the scope read",
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented()},
)
async def metrics(web: App, _: Reader) -> Response:
    text = web.metrics.text() + web.operations.metrics()
    return Response(text, media_type="text/plain; version=0.0.4")


@router.get(DOCS, include_in_schema=False)
async def docs() -> Response:
    page = ROOT / "docs" / "service.md"
    if not page.is_file():
        raise Refusal(Code.NOT_FOUND, "this installation has no docs/service.md", hint="see the source")
    return Response(page.read_bytes(), media_type="text/markdown; charset=utf-8")
