"""/v1/techniques, /v1/pools, /v1/quota, /v1/tokens: what the service would do, and what it may."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from instant_env.service.operations import Code, Refusal
from instant_env.service.web import answers, asks
from instant_env.service.web.context import App, Caller, MachineId, PoolName, TokenId
from instant_env.service.web.problems import documented

router = APIRouter(prefix="/v1")


@router.get(
    "/techniques",
    operation_id="techniques",
    summary="What `auto` thinks now, and why",
    tags=["techniques"],
    responses={200: {"model": answers.TechniquesAnswer}, **documented(Code.UNSUPPORTED_TECHNIQUE)},
)
async def techniques(web: App, token: Caller, query: Annotated[asks.TechniquesQuery, Query()]) -> Response:
    views = await web.operations.techniques(token, query.arch, query.instance_type)
    percentiles = await web.operations.percentiles(token)
    return answers.json_response(answers.techniques_answer(views, percentiles))


@router.get(
    "/pools",
    operation_id="pools",
    summary="All pools",
    tags=["pools"],
    responses={200: {"model": answers.PoolsAnswer}, **documented()},
)
async def pools(web: App, token: Caller) -> Response:
    views = await web.operations.pools(token)
    return answers.json_response(
        answers.PoolsAnswer(pools=[answers.PoolAnswer.model_validate(view) for view in views])
    )


@router.get(
    "/pools/{name}",
    operation_id="pool",
    summary="One pool",
    tags=["pools"],
    responses={200: {"model": answers.PoolAnswer}, **documented(Code.NOT_FOUND)},
)
async def pool(web: App, token: Caller, name: PoolName) -> Response:
    for view in await web.operations.pools(token):
        if view.name == name:
            return answers.json_response(answers.PoolAnswer.model_validate(view))
    raise Refusal(Code.NOT_FOUND, f"there is no pool {name}", hint="GET /v1/pools lists them")


@router.patch(
    "/pools/{name}",
    operation_id="change_pool",
    summary="Change a pool's target, or pause its filling",
    tags=["pools"],
    responses={200: {"model": answers.PoolAnswer}, **documented(Code.NOT_FOUND, Code.QUOTA)},
)
async def change_pool(web: App, token: Caller, name: PoolName, body: asks.PoolAsk) -> Response:
    body.check()
    view = await web.operations.change_pool(token, name, target=body.target, paused=body.paused)
    return answers.json_response(answers.PoolAnswer.model_validate(view))


@router.delete(
    "/pools/{name}/machines/{machine_id}",
    operation_id="retire",
    summary="End a machine that waits; the pool is filled again",
    tags=["pools"],
    responses={200: {"model": answers.PoolAnswer}, **documented(Code.NOT_FOUND, Code.CONFLICT)},
)
async def retire(web: App, token: Caller, name: PoolName, machine_id: MachineId) -> Response:
    view = await web.operations.retire(token, name, machine_id)
    return answers.json_response(answers.PoolAnswer.model_validate(view))


@router.get(
    "/quota",
    operation_id="quota",
    summary="Limits of this token, and what it uses",
    tags=["tokens"],
    responses={200: {"model": answers.QuotaAnswer}, **documented()},
)
async def quota(web: App, token: Caller) -> Response:
    view = await web.operations.quota(token)
    return answers.json_response(answers.quota_answer(view, web.operations.server_facts()))


@router.get(
    "/tokens",
    operation_id="tokens",
    summary="All tokens, without their secrets",
    tags=["tokens"],
    responses={200: {"model": answers.TokensAnswer}, **documented()},
)
async def tokens(web: App, token: Caller) -> Response:
    listed = await web.operations.tokens(token)
    return answers.json_response(answers.TokensAnswer(tokens=[answers.token_answer(each) for each in listed]))


@router.post(
    "/tokens",
    operation_id="new_token",
    summary="Make a token; its secret is shown this once",
    status_code=201,
    tags=["tokens"],
    responses={201: {"model": answers.NewTokenAnswer}, **documented()},
)
async def new_token(web: App, token: Caller, body: asks.TokenAsk) -> Response:
    made, secret = await web.operations.new_token(token, body.new())
    return answers.json_response(
        answers.NewTokenAnswer(token=answers.token_answer(made), secret=secret), 201,
        {"Location": f"/v1/tokens/{made.id}"},
    )  # fmt: skip


@router.delete(
    "/tokens/{token_id}",
    operation_id="revoke_token",
    summary="Revoke a token; leases that it took go on",
    tags=["tokens"],
    responses={200: {"model": answers.TokenAnswer}, **documented(Code.NOT_FOUND)},
)
async def revoke_token(web: App, token: Caller, token_id: TokenId) -> Response:
    return answers.json_response(answers.token_answer(await web.operations.revoke_token(token, token_id)))
