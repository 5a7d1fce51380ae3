"""Airflow's webserver: who may log in. Read by Flask-AppBuilder; only what differs from its defaults.

All of it comes from the environment:

AIRFLOW_LOGIN           `password` (the default), or `oauth`: by the OpenID Connect provider below
OAUTH_ISSUER            its issuer, https://…; its addresses are in <issuer>/.well-known/openid-configuration
OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET
OAUTH_NAME              what the button says (default: OpenID)
OAUTH_ROLES_CLAIM       the claim that has a person's groups (default: groups)
OAUTH_ROLES             JSON: group → list of roles, {"data-oncall": ["OnCall"], "data-admins": ["Admin"]}
OAUTH_DEFAULT_ROLE      the role of whoever has none of these groups (default: Viewer); Public: may see nothing
OAUTH_SCOPES            what is asked for beside `openid email profile` (default: groups)
"""

from __future__ import annotations

import json
import os

from flask_appbuilder.const import AUTH_DB, AUTH_OAUTH

WTF_CSRF_ENABLED = True

if os.environ.get("AIRFLOW_LOGIN", "password") == "oauth":
    from busco.orchestration.oidc import OidcSecurityManager

    AUTH_TYPE = AUTH_OAUTH
    SECURITY_MANAGER_CLASS = OidcSecurityManager
    AUTH_USER_REGISTRATION = True
    AUTH_USER_REGISTRATION_ROLE = os.environ.get("OAUTH_DEFAULT_ROLE") or "Viewer"
    # what the provider says of a person's groups counts at each login, and a role given by hand does not outlive it
    AUTH_ROLES_SYNC_AT_LOGIN = True
    AUTH_ROLES_MAPPING = json.loads(os.environ.get("OAUTH_ROLES", "{}"))
    OAUTH_PROVIDERS = [
        {
            "name": os.environ.get("OAUTH_NAME", "OpenID"),
            "icon": "fa-key",
            "token_key": "access_token",
            "remote_app": {
                "client_id": os.environ["OAUTH_CLIENT_ID"],
                "client_secret": os.environ["OAUTH_CLIENT_SECRET"],
                "server_metadata_url": f"{os.environ['OAUTH_ISSUER'].rstrip('/')}/.well-known/openid-configuration",
                "client_kwargs": {"scope": "openid email profile " + os.environ.get("OAUTH_SCOPES", "groups")},
            },
        }
    ]
else:
    AUTH_TYPE = AUTH_DB
