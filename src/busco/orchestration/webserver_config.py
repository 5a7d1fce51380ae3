"""Airflow's webserver: who may log in, and what it refuses. Read by Airflow as its `webserver_config.py`; only what
differs from Flask-AppBuilder's defaults.

All of it comes from the environment:

AIRFLOW_LOGIN           `password` (the default), or `oauth`: by the OpenID Connect provider below
OAUTH_ISSUER            its issuer, https://…; its addresses are in <issuer>/.well-known/openid-configuration
OAUTH_CLIENT_ID, OAUTH_CLIENT_SECRET
OAUTH_NAME              what the button says (default: OpenID)
OAUTH_ROLES_CLAIM       the claim that has a person's groups (default: groups)
OAUTH_ROLES             JSON: group → list of roles, {"data-oncall": ["OnCall"], "data-admins": ["Admin"]}
OAUTH_DEFAULT_ROLE      a role that everybody has whom the provider knows (Viewer, for example); by default nobody who
                        has none of these groups may log in
OAUTH_SCOPES            what is asked for beside `openid email profile` (default: groups)
BUSCO_WEB_HOSTS         further names by which browsers reach the webserver
"""

from __future__ import annotations

import json
import os

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask import current_app
from flask_appbuilder.const import AUTH_DB, AUTH_OAUTH

from busco.errors import BuscoError
from busco.orchestration.access import admin, login_kind, refuse_known
from busco.orchestration.guard import protect

WTF_CSRF_ENABLED = True
SECURITY_MANAGER_CLASS: type[FabAirflowSecurityManagerOverride]

if login_kind() == "oauth":
    from busco.orchestration.oidc import OidcSecurityManager

    AUTH_TYPE = AUTH_OAUTH
    SECURITY_MANAGER_CLASS = OidcSecurityManager
    AUTH_USER_REGISTRATION = True
    # a role without a permission, for those who have one by their groups
    AUTH_USER_REGISTRATION_ROLE = os.environ.get("OAUTH_DEFAULT_ROLE") or "Public"
    # what the provider says of a person's groups counts at each login, and a role given by hand does not outlive it
    AUTH_ROLES_SYNC_AT_LOGIN = True
    AUTH_ROLES_MAPPING = json.loads(os.environ.get("OAUTH_ROLES") or "{}")
    if not AUTH_ROLES_MAPPING and not os.environ.get("OAUTH_DEFAULT_ROLE"):
        raise BuscoError(
            "AIRFLOW_LOGIN is oauth, and neither OAUTH_ROLES nor OAUTH_DEFAULT_ROLE is set: nobody could log in",
            'set OAUTH_ROLES to the roles of your groups: {"data-admins": ["Admin"]}',
        )
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
    from busco.orchestration.passwords import PasswordSecurityManager

    AUTH_TYPE = AUTH_DB
    SECURITY_MANAGER_CLASS = PasswordSecurityManager
    refuse_known(admin()[1])

# Airflow has an app context here for what a configuration does to the app
protect(current_app)
