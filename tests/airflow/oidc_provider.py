"""A small OpenID Connect provider on loopback, which logs everyone in as `person`."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.loopback import Handler

CLIENT, SECRET = "busco-airflow", "the client's secret"


class Provider:
    """The provider's state. `url` is set once it is served.

    Attributes:
        person: the claims about the user who logs in.
    """

    def __init__(self) -> None:
        self.url = ""
        self.person: dict[str, Any] = {}
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._nonces: dict[str, str] = {}

    def handler(provider) -> type[Handler]:
        class Answering(Handler):
            def do_GET(self) -> None:
                url = urlsplit(self.path)
                fields = {name: values[0] for name, values in parse_qs(url.query).items()}
                if url.path == "/.well-known/openid-configuration":
                    self.json(provider.configuration())
                elif url.path == "/jwks":
                    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(provider._key.public_key()))
                    self.json({"keys": [{**public, "kid": "one", "alg": "RS256", "use": "sig"}]})
                elif url.path == "/authorize" and fields.get("client_id") == CLIENT:
                    code = f"code-{len(provider._nonces)}"
                    provider._nonces[code] = fields.get("nonce", "")
                    back = f"{fields['redirect_uri']}?{urlencode({'code': code, 'state': fields['state']})}"
                    self.answer(302, headers={"Location": back})
                else:
                    self.answer(404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                fields = {name: values[0] for name, values in parse_qs(body).items()}
                nonce = provider._nonces.pop(fields.get("code", ""), None)
                if self.path != "/token" or nonce is None:
                    self.answer(400, b'{"error": "invalid_grant"}', {"Content-Type": "application/json"})
                    return
                self.json({"access_token": "a", "token_type": "Bearer", "id_token": provider.id_token(nonce)})

            def json(self, content: object) -> None:
                self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        return Answering

    def configuration(self) -> dict[str, Any]:
        """Returns the provider's metadata (OpenID Connect Discovery 1.0, section 3)."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def id_token(self, nonce: str) -> str:
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "iat": now, "exp": now + 300, "nonce": nonce, **self.person}
        return jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "one"})
