"""The part of AWS's policy language that byokfs's policies use, evaluated as its documentation says ("Policy evaluation logic",
"Condition operators", "KMS condition keys"); and enough of HCL to read the Terraform back. Written apart from the programs."""
import fnmatch
import re


def as_list(value):
    return value if isinstance(value, list) else [value]


class Request:
    """One call: who, action, on which key, with which encryption context (None: the operation has none)."""

    def __init__(self, who, action, key, context=None, external_id=None):
        self.who, self.action, self.key = who, action, key
        self.keys = {}
        if context is not None:
            for name, value in context.items():
                self.keys["kms:encryptioncontext:" + name.lower()] = [value]
            if context:
                self.keys["kms:encryptioncontextkeys"] = list(context)
        if external_id is not None:
            self.keys["sts:externalid"] = [external_id]

    @property
    def account(self):
        return self.who.split(":")[4]


def condition_holds(operator, name, wanted, request):
    have = request.keys.get(name.lower())
    if operator == "StringEquals":  # single-valued; a key that is missing matches nothing
        assert have is None or len(have) == 1, "a set operator is wanted for a key of many values"
        return have is not None and have[0] in as_list(wanted)
    if operator == "ForAllValues:StringEquals":  # true of no values at all
        return all(value in as_list(wanted) for value in have or [])
    raise AssertionError(f"operator {operator}")


def names_principal(statement, request):
    """'direct', 'account' or None."""
    principals = as_list(statement["Principal"]["AWS"])
    if request.who in principals:
        return "direct"
    partition = request.who.split(":")[1]
    return "account" if f"arn:{partition}:iam::{request.account}:root" in principals else None


def applies(statement, request):
    """Leaves the principal out."""
    assert set(statement) <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}, statement
    if not any(fnmatch.fnmatchcase(request.action.lower(), a.lower()) for a in as_list(statement["Action"])):
        return False
    if not any(fnmatch.fnmatchcase(request.key, r) for r in as_list(statement.get("Resource", "*"))):
        return False
    return all(condition_holds(operator, name, wanted, request)
               for operator, pairs in statement.get("Condition", {}).items() for name, wanted in pairs.items())


def statements(document):
    assert document["Version"] == "2012-10-17" and set(document) == {"Version", "Statement"}
    return document["Statement"]


def allowed(request, key_policy, identity_policy=None):
    """A key's policy must allow in any case: the principal itself, or its account, which hands the question on to the
    principal's own permissions. From another account those must allow too."""
    mine = statements(identity_policy) if identity_policy else []
    direct = account = False
    for s in statements(key_policy):
        how = names_principal(s, request)
        if not how or not applies(s, request):
            continue
        if s["Effect"] == "Deny":
            return False
        direct, account = direct or how == "direct", account or how == "account"
    if any(s["Effect"] == "Deny" and applies(s, request) for s in mine):
        return False
    permitted = any(applies(s, request) for s in mine)
    if request.account != request.key.split(":")[4]:
        return (direct or account) and permitted
    return direct or (account and permitted)


# ---- HCL

TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*(?:"((?:[^"\\]|\\.)*)"|([A-Za-z_][\w.]*)|(-?\d+)|([=\[\]{}(),]))')
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}


def unquote(text):
    assert not re.search(r"(?<![$])(?:[$][$])*[$]\{|(?<!%)(?:%%)*%\{", text), f"an expression: {text}"
    text = text.replace("$${", "${").replace("%%{", "%{")
    return re.sub(r"\\(?:u([0-9a-f]{4})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else ESCAPES[m[2]], text)


class Hcl:
    """{(type, name): attributes} of resource blocks; jsonencode() gives its value, a reference '&name'."""

    def __init__(self, text):
        self.tokens, at = [], 0
        while text[at:].strip():
            m = TOKEN.match(text, at)
            assert m, text[at:at + 80]
            kind = m.lastindex
            self.tokens.append((kind, m[kind]))
            at = m.end()
        self.at = 0
        self.resources = {}
        while self.at < len(self.tokens):
            self.take("resource")
            name = unquote(self.next()[1]), unquote(self.next()[1])
            assert name not in self.resources
            self.take("{")
            self.resources[name] = self.body("}")

    def next(self):
        self.at += 1
        return self.tokens[self.at - 1]

    def take(self, word):
        got = self.next()
        assert got[1] == word and got[0] != 1, (word, got)

    def peek(self, word):
        return self.tokens[self.at][0] != 1 and self.tokens[self.at][1] == word

    def body(self, end):
        out = {}
        while not self.peek(end):
            kind, name = self.next()
            name = unquote(name) if kind == 1 else name
            assert name not in out
            self.take("=")
            out[name] = self.value()
        self.take(end)
        return out

    def value(self):
        kind, text = self.next()
        if kind == 1:
            return unquote(text)
        if kind == 3:
            return int(text)
        if text == "jsonencode":
            self.take("(")
            inner = self.value()
            self.take(")")
            return inner
        if text == "{":
            return self.body("}")
        if text == "[":
            out = []
            while not self.peek("]"):
                out.append(self.value())
                self.take(",")
            self.take("]")
            return out
        assert kind == 2, text
        return {"true": True, "false": False}.get(text, "&" + text)


def aligned(run):
    """run: (end of name, place of '=') of neighbours: one column, one blank behind the longest name."""
    return not run or (len({at for _, at in run}) == 1 and min(at - end for end, at in run) == 1)


def formatted(text):
    """As `terraform fmt` leaves it: two blanks a level, '=' of neighbouring one-line attributes in one column."""
    depth, run = 0, []
    for line in text.splitlines():
        bare = "" if line.lstrip().startswith("#") else re.sub(r'"(?:[^"\\]|\\.)*"', lambda m: "_" * len(m[0]), line)
        opens, closes = len(re.findall(r"[\[{(]", bare)), len(re.findall(r"[\]})]", bare))
        if closes > opens:
            depth -= 1
        if line != line.rstrip() or (line and len(line) - len(line.lstrip()) != 2 * depth):
            return False
        attribute = re.match(r"(\s*\w+)( *)= \S", bare)
        if attribute and opens == closes:
            run.append((attribute.end(1), attribute.end(2)))
        else:
            if not aligned(run) or (attribute and len(attribute[2]) != 1):
                return False
            run = []
        if opens > closes:
            depth += 1
    return depth == 0 and aligned(run)
