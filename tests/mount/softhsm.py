"""A token of SoftHSM2 in a directory of the test's own, and stores under a key on it."""
import os
import subprocess

import pytest

from conftest import Mount, environment

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
PIN, TOKEN, KEY = "123456", "Customer's token", "byokfs key"
URI = "pkcs11:token=Customer%27s%20token;object=byokfs%20key"


class Token:
    """The customer's side: keys come and go, the token is unplugged."""

    def __init__(self, base):
        if not os.path.exists(MODULE):
            pytest.fail(f"no {MODULE}: install softhsm2 and opensc")
        self.base = str(base)
        os.makedirs(os.path.join(self.base, "tokens"))
        self.conf = os.path.join(self.base, "softhsm2.conf")
        self.pin_file = os.path.join(self.base, "pin")
        self.material = os.path.join(self.base, "material")
        with open(self.conf, "w") as f:
            f.write(f"directories.tokendir = {self.base}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
        with open(self.material, "wb") as f:
            f.write(os.urandom(32))
        self.pin(PIN)
        self.run("softhsm2-util", "--init-token", "--free", "--label", TOKEN, "--pin", PIN, "--so-pin", "12345678")
        self.restore()

    def environment(self):
        return dict(environment(), SOFTHSM2_CONF=self.conf)

    def run(self, *args):
        r = subprocess.run(args, env=self.environment(), capture_output=True, text=True, timeout=60)
        assert r.returncode == 0, r.stdout + r.stderr

    def tool(self, *args):
        self.run("pkcs11-tool", "--module", MODULE, "--token-label", TOKEN, "--login", "--pin", PIN, *args)

    def pin(self, text, mode=0o600):
        with open(self.pin_file, "w") as f:
            f.write(text + "\n")
        os.chmod(self.pin_file, mode)

    def generate(self, *args, label=KEY, bits=256):
        self.tool("--keygen", "--key-type", f"AES:{bits // 8}", "--label", label, *(args or ["--sensitive"]))

    def destroy(self, label=KEY):
        self.tool("--delete-object", "--type", "secrkey", "--label", label)

    def restore(self):
        """The customer's key, from the customer's copy."""
        self.tool("--write-object", self.material, "--type", "secrkey", "--key-type", "AES:32", "--label", KEY, "--sensitive")

    def unplug(self):
        """The module still works, its token is gone."""
        self.move("tokens", "away")

    def plug(self):
        self.move("away", "tokens")

    def move(self, source, target):
        source, target = os.path.join(self.base, source), os.path.join(self.base, target)
        os.makedirs(target, exist_ok=True)
        for name in os.listdir(source):
            os.rename(os.path.join(source, name), os.path.join(target, name))

    def ini(self, probe="500ms", lease="2s", key=KEY, more=""):
        return (f"[kms]\nprovider = pkcs11\nrequest_timeout = 1s\n"
                f"[pkcs11]\nmodule = {MODULE}\ntoken = {TOKEN}\nkey = {key}\npin_file = {self.pin_file}\n{more}"
                f"[cache]\nprobe = {probe}\nlease = {lease}\n")


class TokenMount(Mount):
    """kms is a Token."""

    def __init__(self, base, token, **kw):
        self.kms = token
        super().__init__(base, token, ini=token.ini(), **kw)

    def environment(self):
        return self.kms.environment()
