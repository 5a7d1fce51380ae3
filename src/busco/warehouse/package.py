"""Adds the platform's dbt package, with its materializations and profile, to every project automatically."""

from __future__ import annotations

from pathlib import Path

from dbt.adapters.factory import FACTORY

from busco.project import PLATFORM_PACKAGE

# the folder with the package's dbt_project.yml and macros, and with the profile that every project uses
FOLDER = Path(__file__).with_name("dbt_package")
PROFILE = "busco"


def register() -> None:
    """Makes dbt load the package as an internal package, like the adapter's. A project needs no `packages.yml`, no copy
    and no `dbt deps` for it, and a project's own macros take precedence. Safe to call repeatedly.

    Only an internal package can override dbt's `seed` materialization. dbt's only public way to register one is a
    custom adapter, which would have to duplicate everything in dbt-duckdb.
    """
    if PLATFORM_PACKAGE in FACTORY.packages:
        return
    FACTORY.packages[PLATFORM_PACKAGE] = FOLDER
    original = FACTORY.get_adapter_package_names

    def names(adapter: str | None) -> list[str]:
        # dbt looks up macros in this order: the adapter's package must stay first, and dbt's own last
        *first, last = original(adapter)
        return [*first, PLATFORM_PACKAGE, last]

    FACTORY.get_adapter_package_names = names  # type: ignore[method-assign, assignment]
