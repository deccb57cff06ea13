"""/api/v1/auth/…: people register, log in, carry on, log out, and ask who they are.

The token of a session is in its cookie and nowhere else. Unknown address and wrong password get the same answer in the
same time.
"""

from typing import Any, Final

import msgspec
from litestar import Request, Response, get, post
from litestar.di import NamedDependency

from api import csrf
from api.bodies import read_fields, read_nothing
from api.callers import Caller
from api.dependencies import KeyRequest, not_logged_in, require_session, sessions_are_off
from api.node import Node
from api.parameters import Parameters
from api.passwords import PASSWORD_CHARACTERS_LEAST, PASSWORD_CHARACTERS_MOST
from api.sessions import Sessions, Ticket
from shared import emails
from shared.database import users
from shared.database.api_keys import Principal
from shared.database.users import User
from shared.errors import NotFound, PermissionDenied
from shared.openai import fields
from shared.throttle import count_try, forget_tries

AUTH_BASE: Final = "/api/v1/auth"
NO_STORE: Final = {"cache-control": "no-store"}


class UserBody(msgspec.Struct, frozen=True, kw_only=True):
    """A person who is logged in, until `session_expires_at` unless the session is refreshed. Unix seconds."""

    id: str
    object: str = "user"
    email: str
    account_id: str
    admin: bool
    created_at: int
    session_expires_at: int


@post("/register", status_code=201)
async def register(request: Request[Any, Any, Any], node: NamedDependency[Node]) -> Response[UserBody]:
    """Make a user with an account of its own, without credits, and log in."""
    sessions, caller = _from_own_page(node, request)
    if not node.settings.sessions.registration_open:
        raise PermissionDenied("Registration is closed: ask the operator for an account.", code="registration_closed")
    given = await read_fields(request, {"email": _email, "password": _new_password})
    await count_try(node.redis, [("register", caller.address, node.settings.sessions.login_address_rpm)])
    password_hash = await sessions.passwords.hash(given["password"])
    user = await node.ledger.query(
        lambda connection: users.register(
            connection,
            email=given["email"],
            password_hash=password_hash,
            concurrency=node.settings.api.account_concurrency,
        )
    )
    return _logged_in(user, await sessions.begin(user, caller), status_code=201)


@post("/login", status_code=200)
async def login(request: Request[Any, Any, Any], node: NamedDependency[Node]) -> Response[UserBody]:
    """Begin a session."""
    sessions, caller = _from_own_page(node, request)
    given = await read_fields(request, {"email": _email, "password": fields.text(1, PASSWORD_CHARACTERS_MOST)})
    email, limits = given["email"], node.settings.sessions
    await count_try(
        node.redis,
        [("login", caller.address, limits.login_address_rpm), ("login-as", email, limits.login_email_rpm)],
    )
    user = await node.ledger.query(lambda connection: users.find_user(connection, email))
    if not await sessions.passwords.matches(given["password"], user.password_hash if user else None) or user is None:
        raise not_logged_in()
    if not user.active:
        raise PermissionDenied("This account has been deactivated.", code="account_deactivated")
    await forget_tries(node.redis, "login-as", email)
    return _logged_in(user, await sessions.begin(user, caller))


@post("/refresh", guards=[require_session], status_code=200)
async def refresh(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[UserBody]:
    """Carry the session on: new cookies for the same session."""
    await read_nothing(request)
    sessions, caller = _sessions(node, request)
    return _logged_in(await _user(node, principal), sessions.carry_on(principal, caller))


@get("/me", guards=[require_session])
async def get_me(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[UserBody]:
    """Say who is logged in."""
    Parameters(request)
    sessions, caller = _sessions(node, request)
    expires_at = sessions.claims(dict(request.scope["headers"]), caller).expires_at
    return Response(_body(await _user(node, principal), expires_at), headers=NO_STORE)


@post("/logout", guards=[require_session], status_code=204)
async def logout(
    request: KeyRequest, node: NamedDependency[Node], principal: NamedDependency[Principal]
) -> Response[None]:
    """End the session on every node, and what runs with it."""
    await read_nothing(request)
    sessions, caller = _sessions(node, request)
    await sessions.end(principal.key_id)
    await node.revoke(principal.key_id)
    return Response(None, status_code=204, headers=NO_STORE, cookies=sessions.no_cookies(caller))


def _sessions(node: Node, request: Request[Any, Any, Any]) -> tuple[Sessions, Caller]:
    if node.sessions is None:
        raise sessions_are_off()
    return node.sessions, node.sessions.caller(request.scope, dict(request.scope["headers"]))


def _from_own_page(node: Node, request: Request[Any, Any, Any]) -> tuple[Sessions, Caller]:
    """Refuse a login that another site's page sends: it would put the visitor into a stranger's account."""
    sessions, caller = _sessions(node, request)
    csrf.check_origin(dict(request.scope["headers"]), caller.origin, needed=False)
    return sessions, caller


async def _user(node: Node, principal: Principal) -> User:
    user = await node.ledger.query(lambda connection: users.get_user(connection, principal.user_id))
    if user is None:
        raise NotFound("There is no such user.")
    return user


def _logged_in(user: User, ticket: Ticket, *, status_code: int = 200) -> Response[UserBody]:
    body = _body(user, ticket.expires_at)
    return Response(body, status_code=status_code, headers=NO_STORE, cookies=ticket.cookies)


def _body(user: User, expires_at: int) -> UserBody:
    return UserBody(
        id=user.id,
        email=user.email,
        account_id=user.account_id,
        admin=user.admin,
        created_at=int(user.created_at.timestamp()),
        session_expires_at=expires_at,
    )


def _email(name: str, value: Any) -> str:
    text: str = fields.text(3, emails.CHARACTERS_MOST)(name, value)
    try:
        return emails.normalised(text)
    except ValueError as error:
        raise fields.invalid(name, f"an e-mail address: {error}") from None


def _new_password(name: str, value: Any) -> str:
    password: str = fields.text(PASSWORD_CHARACTERS_LEAST, PASSWORD_CHARACTERS_MOST)(name, value)
    return password
