"""Layered settings, by pydantic-settings: flags over environment variables over a file over defaults.

A module of its own, because pydantic-settings takes 50 ms to import: only what reads the layers pays for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from pydantic import BaseModel, ValidationError, create_model
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    SettingsError,
    YamlConfigSettingsSource,
)
from pydantic_settings.sources import PydanticBaseSettingsSource

from instant_env.errors import UsageError

M = TypeVar("M", bound=BaseModel)


class _Flags(InitSettingsSource):
    """Values that were given on the command line."""

    def name_of(self, key: str) -> str:
        return "--" + key.replace("_", "-")


class _Variables(EnvSettingsSource):
    """Variables of an environment that is handed in; empty ones do not count as given."""

    def __init__(self, settings_cls: type[BaseSettings], prefix: str, environ: Mapping[str, str]) -> None:
        super().__init__(settings_cls, case_sensitive=False, env_prefix=prefix)
        self.env_vars = {name.lower(): value for name, value in environ.items() if value}

    def name_of(self, key: str) -> str:
        return self.env_prefix + key.upper()


class _File(YamlConfigSettingsSource):
    """Keys and values of a YAML file.

    Raises UsageError for a file that cannot be read, is not YAML, or is not a mapping.
    """

    def __init__(self, settings_cls: type[BaseSettings], path: Path | None) -> None:
        self._path = path
        super().__init__(settings_cls, yaml_file=path)

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            values = super()._read_file(file_path)
        except RecursionError as error:
            raise UsageError(f"{file_path} is nested too deeply") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{file_path} cannot be read: it is not UTF-8 ({error})") from error
        except OSError as error:
            raise UsageError(f"{file_path} cannot be read: {error}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
            raise UsageError(f"{file_path} is not YAML: {error}".replace("\n", " ")) from error
        if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
            raise UsageError(f"{file_path} must hold keys and values", hint="for example: cloud: aws")
        return values

    def name_of(self, key: str) -> str:
        return f"{self._path}: {key}"


_Layer = _Flags | _Variables | _File


def merge(
    model: type[M], *, flags: Mapping[str, Any], prefix: str, environ: Mapping[str, str], file: Path | None
) -> M:
    """Values for a model from all layers; ``file`` is None when there is none.

    Raises UsageError, which names for each mistake the flag, variable or key of the file, and the rule.
    """
    # The model itself reads nothing: whoever makes one by hand gets defaults for what is not given.
    layered = cast(
        type[BaseSettings],
        create_model(model.__name__, __base__=(model, BaseSettings), __cls_kwargs__={"case_sensitive": True}),
    )
    layers: tuple[_Layer, ...] = (
        _Flags(layered, dict(flags)), _Variables(layered, prefix, environ), _File(layered, file)
    )  # fmt: skip
    sources: tuple[PydanticBaseSettingsSource, ...] = layers
    try:
        values = layered(_build_sources=(sources, {}))
    except ValidationError as error:
        raise _explained(error, model, layers) from error
    except SettingsError as error:  # a variable of a part that has keys, such as `service`
        raise UsageError(f"{error}", hint="the value of such a variable is JSON") from error
    return model.model_validate(values.model_dump(exclude_unset=True))


def _explained(error: ValidationError, model: type[BaseModel], layers: tuple[_Layer, ...]) -> UsageError:
    """``instant-env.yml: cloud: Input should be 'local' or 'aws'``, with the nearest name as a hint."""
    mistakes = []
    hint = ""
    for item in error.errors(include_url=False, include_input=False):
        key = str(item["loc"][0])
        name = next((layer.name_of(key) for layer in layers if key in layer()), key)
        unknown = item["type"] == "extra_forbidden"
        mistakes.append(f"{name}: {'unknown key' if unknown else item['msg']}")
        if unknown and not hint:
            hint = nearest(key, list(model.model_fields))
    return UsageError("; ".join(mistakes), hint=hint or "see instant_env/settings.py for the keys")


def nearest(name: str, names: list[str]) -> str:
    """A hint with the name that is most like this one; empty when none is."""
    near = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else ""
