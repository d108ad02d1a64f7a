"""JSON schemas as grammars (GBNF) that llama.cpp samples under. Blocking, and heavy to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mqttcollab.errors import RequestError
from mqttcollab.runtimes.gguf import llama_cpp_module

_MAX_SCHEMA = 32_768
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
# llama-cpp-python's rule of a character lets through line ends, which JSON takes only escaped.
_CHARACTER, _JSON_CHARACTER = 'char ::= [^"\\\\] |', r'char ::= [^"\\\x00-\x1F\x7F] |'
_MAX_COUNT = 1000  # a million repetitions overrun llama.cpp's stack


def grammar_of(schema: Mapping[str, Any], vocab: Any) -> Any:
    """Return a `llama_cpp.LlamaGrammar` of a JSON schema.

    Args:
        schema: llama-cpp-python knows types, enums, bounds of lengths (at most 1000), `$ref` within it, plain patterns.
        vocab: of the model that it is for.

    Raises:
        RequestError: `unsupported`, the schema makes no grammar; `too_large`, it is very long.
    """
    llama_cpp = llama_cpp_module()
    from llama_cpp.llama_grammar import LlamaGrammar, json_schema_to_gbnf

    text = as_json(schema)
    if len(text) > _MAX_SCHEMA:
        raise RequestError("too_large", f"the schema has {len(text)} characters, at most {_MAX_SCHEMA}; simplify it")
    _check(json.loads(text))
    try:
        rules = json_schema_to_gbnf(text).replace(_CHARACTER, _JSON_CHARACTER)
        grammar = LlamaGrammar.from_string(rules, verbose=False)
    except Exception as error:  # asserts, KeyError and RecursionError among them
        raise RequestError("unsupported", f"the schema makes no grammar: {error!r:.200}") from error
    # A grammar that llama.cpp can't parse would end the process when it is sampled under.
    sampler = llama_cpp.llama_sampler_init_grammar(vocab, grammar._grammar.encode(), grammar._root.encode())
    if not sampler:
        raise RequestError("unsupported", "the schema makes a grammar that llama.cpp does not parse; simplify it")
    llama_cpp.llama_sampler_free(sampler)
    return grammar


def as_json(schema: Mapping[str, Any]) -> str:
    """A schema's JSON. Raises RequestError: `bad_request`, it has none."""
    try:
        return json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError("bad_request", f"the schema is not JSON: {error}") from error


def _check(found: Any) -> None:
    for key, value in found.items() if isinstance(found, dict) else enumerate(found):
        if key in _COUNTS and isinstance(value, int) and not 0 <= value <= _MAX_COUNT:
            raise RequestError("unsupported", f"{key} in the schema is {value}; llama.cpp takes 0 to {_MAX_COUNT}")
        if key == "$ref" and isinstance(value, str) and not value.startswith("#"):  # it would be downloaded
            raise RequestError("unsupported", f"$ref in the schema is {value!r:.100}; it must begin with #")
        if isinstance(value, dict | list):
            _check(value)
