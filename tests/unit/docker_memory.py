"""An in-memory Docker: the part of docker-py's client that the starter uses."""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import docker

IMAGE = "busco-dbt:local"


class Container:
    def __init__(self, engine: Engine, image: str, options: dict[str, Any]) -> None:
        self.engine, self.image, self.options = engine, image, options
        self.id = secrets.token_hex(32)
        self.labels: dict[str, str] = options.get("labels", {})
        self.status = "created"
        self.signals: list[str] = []

    @property
    def attrs(self) -> dict[str, Any]:
        return {"State": {"ExitCode": 0 if self.status == "running" else 143, "OOMKilled": False}}

    def start(self) -> None:
        self.status = "running"

    def stop(self, timeout: int) -> None:
        self.signals.append(f"stop {timeout}")
        self.status = "exited"

    def reload(self) -> None:
        pass

    def remove(self, v: bool, force: bool) -> None:
        assert v
        assert force
        del self.engine.made[self.id]


class Engine:
    """A Docker client together with its engine's state."""

    def __init__(self, images: tuple[str, ...] = (IMAGE,)) -> None:
        self.made: dict[str, Container] = {}
        self.pulled: list[str] = []
        self._images = images
        self.containers = SimpleNamespace(create=self._create, get=self._get, list=self._list)
        self.images = SimpleNamespace(get=self._image)
        self.volumes = SimpleNamespace(list=lambda filters: [])
        self.api = SimpleNamespace(wait=self._wait, pull=self._pull)

    def ping(self) -> bool:
        return True

    def info(self) -> dict[str, Any]:
        return {"NCPU": 8}

    def other(self, **labels: str) -> Container:
        """Returns a running container that someone else started."""
        made = self._create("postgres:16.3-alpine", labels=labels)
        made.start()
        return made

    def _create(self, image: str, **options: Any) -> Container:
        made = Container(self, image, options)
        self.made[made.id] = made
        return made

    def _get(self, identifier: str) -> Container:
        for made in self.made.values():
            if identifier in (made.id, made.options.get("name")):
                return made
        raise docker.errors.NotFound(f"No such container: {identifier}")

    def _list(self, filters: dict[str, str], **_: Any) -> list[Container]:
        name, _, value = filters["label"].partition("=")
        return [one for one in self.made.values() if one.labels.get(name) == value]

    def _image(self, name: str) -> Any:
        if name not in self._images:
            raise docker.errors.ImageNotFound(name)
        return SimpleNamespace(attrs={"Architecture": "amd64", "Config": {"Volumes": {"/tmp": {}}}})

    def _wait(self, identifier: str, timeout: None) -> None:
        assert timeout is None
        assert identifier in self.made

    def _pull(self, name: str, **_: Any) -> list[dict[str, str]]:
        self.pulled.append(name)
        return [{"error": "manifest unknown"}]
