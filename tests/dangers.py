"""What in a module's source could run code out of a file, or a text as a command: the scan of tests/test_security.py.

Names are followed through imports, assignments, `getattr` and `import_module` of the same module, wherever in it they
are made; options through keywords, `**` and dicts. What is put together out of strings at run time is not seen.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
         "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.load_all", "yaml.full_load",
         "yaml.unsafe_load", "numpy.save", "pandas.read_pickle", "tempfile.mktemp"}
SAFE = {"trust_remote_code": False, "allow_pickle": False, "use_safetensors": True, "weights_only": True}
"""Options, and the only value that each may have."""
REMOTE = re.compile(r"(^|\.)(Auto\w+\.from_(pretrained|config)|transformers\.pipeline|"
                    r"sentence_transformers\.SentenceTransformer)$")
WEIGHTS = re.compile(r"(^|\.)(\w*ForCausalLM|AutoModel\w*|PeftModel\w*)\.from_pretrained$")
IMPORTERS = {"importlib.import_module", "__import__", "importlib.__import__"}


def dangers(code: str) -> Iterator[str]:
    """What of a module's text is dangerous; `line: what`."""
    return _Scan(ast.parse(code)).found()


class _Scan:
    """One module: what its names may stand for, and the options its dicts hold."""

    def __init__(self, tree: ast.Module) -> None:
        self.nodes = list(ast.walk(tree))
        self.names: dict[str, set[str]] = defaultdict(set)
        self.dicts: dict[str, list[ast.expr]] = defaultdict(list)
        for node in self.nodes:
            self._import(node)
        for _ in range(3):  # a name for a name for a name
            for node in self.nodes:
                self._assign(node)

    def found(self) -> Iterator[str]:
        for node in self.nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield from (f"{node.lineno}: import {name}" for name in _imported(node)
                            if name.endswith(".*") or MODULES & set(name.split(".")))
            elif isinstance(node, ast.Call):
                yield from (f"{node.lineno}: {what}" for what in self._call(node))
                yield from (f"{node.lineno}: {given.arg}={ast.unparse(given.value)}" for given in node.keywords
                            if given.arg in SAFE and not _is(given.value, SAFE[given.arg]))
            elif isinstance(node, ast.Dict):
                yield from (f"{node.lineno}: {name}: {ast.unparse(value)}" for name, value in _entries(node)
                            if name in SAFE and not _is(value, SAFE[name]) and not _is_text(value))
            elif isinstance(node, ast.Assign):
                for place in node.targets:
                    key = place.slice.value if isinstance(place, ast.Subscript) and isinstance(
                        place.slice, ast.Constant) else None
                    if key in SAFE and not _is(node.value, SAFE[key]):
                        yield f"{node.lineno}: {ast.unparse(node)}"

    def _call(self, node: ast.Call) -> Iterator[str]:
        for called in sorted(self.meant(node.func)):
            if called in CALLS or MODULES & set(called.split(".")[:1]):
                yield f"{called}()"
            elif called in IMPORTERS and node.args:
                yield from (f"{called}({text!r})" for text in _texts(node.args[0]) if text.split(".")[0] in MODULES)
            if called.startswith("subprocess.") and any(one.arg in (None, "shell") and not _is(one.value, False)
                                                        for one in node.keywords):
                yield f"{called}() that may be given a shell"
            options = self._options(node)
            if REMOTE.search(called) and "trust_remote_code" not in options:
                yield f"{called} without trust_remote_code=False"
            if WEIGHTS.search(called) and "use_safetensors" not in options:
                yield f"{called} without use_safetensors=True"

    def _options(self, node: ast.Call) -> set[str]:
        """Options that a call certainly gives their safe value."""
        given = [[(one.arg, one.value)] for one in node.keywords if one.arg]
        for one in node.keywords:
            if one.arg is None:
                known = self.dicts.get(one.value.id, []) if isinstance(one.value, ast.Name) else [one.value]
                every = [{name for name, value in _entries(each) if name in SAFE and _is(value, SAFE[name])}
                         for each in known]
                given.append([(name, ast.Constant(SAFE[name])) for name in set.intersection(*every)] if every else [])
        return {name for part in given for name, value in part if name in SAFE and _is(value, SAFE[name])}

    def meant(self, node: ast.expr) -> set[str]:
        """The dotted names that an expression may stand for; builtins by their bare names."""
        if isinstance(node, ast.Name):
            found = self.names.get(node.id) or {node.id}
        elif isinstance(node, ast.Attribute):
            found = {f"{one}.{node.attr}" for one in self.meant(node.value)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) > 1:
            found = {f"{one}.{text}" for one in self.meant(node.args[0]) for text in _texts(node.args[1])}
        elif isinstance(node, ast.Call) and node.args and self.meant(node.func) & IMPORTERS:
            found = set(_texts(node.args[0]))
        elif isinstance(node, ast.IfExp):
            found = self.meant(node.body) | self.meant(node.orelse)
        else:
            found = set()
        return {one.removeprefix("builtins.").removeprefix("__builtins__.") for one in found}

    def _import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for one in node.names:
                name = one.asname or one.name.split(".")[0]
                self.names[name].add(one.name if one.asname else name)
        elif isinstance(node, ast.ImportFrom):
            for one in node.names:
                self.names[one.asname or one.name].add(f"{node.module or ''}.{one.name}".lstrip("."))

    def _assign(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            pairs = [(place, node.value) for place in node.targets]
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr) and node.value is not None:
            pairs = [(node.target, node.value)]
        else:
            return
        for place, value in pairs:
            if not isinstance(place, ast.Name):
                continue
            self.names[place.id] |= {one for one in self.meant(value) if one != place.id}
            if isinstance(value, ast.Dict | ast.Call) and value not in self.dicts[place.id]:
                self.dicts[place.id].append(value)


def _imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [one.name for one in node.names]
    return [f"{node.module or ''}.{one.name}" for one in node.names]


def _entries(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of a dict that is written out, as {...} or dict(...)."""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value
    elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dict":
        yield from ((one.arg, one.value) for one in node.keywords if one.arg)


def _texts(node: ast.expr) -> Iterator[str]:
    """Text constants that an expression may be."""
    if isinstance(node, ast.IfExp):
        yield from (*_texts(node.body), *_texts(node.orelse))
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def _is(node: ast.expr, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
