"""The platform's own dbt package: the materializations and the profile that every project has without naming them."""

from __future__ import annotations

from pathlib import Path

from dbt.adapters.factory import FACTORY

from busco.project import PLATFORM_PACKAGE

# its dbt_project.yml, macros, and the profile by which every project runs
FOLDER = Path(__file__).with_name("dbt_package")
PROFILE = "busco"


def bring() -> None:
    """Makes dbt load the package among its internal ones, as it does the adapter's macros: no project needs a
    `packages.yml`, a copy or a `dbt deps` for it, and a project's own macros come before it. Safe to repeat.

    dbt has no public way to name an internal package but an adapter of one's own, of which everything would have to be
    repeated here; only an internal package may replace dbt's `seed`.
    """
    if PLATFORM_PACKAGE in FACTORY.packages:
        return
    FACTORY.packages[PLATFORM_PACKAGE] = FOLDER
    known = FACTORY.get_adapter_package_names

    def names(adapter: str | None) -> list[str]:
        # the adapter's own stays first, dbt's last: that is also the order in which macros are looked for
        *first, last = known(adapter)
        return [*first, PLATFORM_PACKAGE, last]

    FACTORY.get_adapter_package_names = names  # type: ignore[method-assign, assignment]
