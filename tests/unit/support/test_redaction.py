"""What is a secret by its name, place or form is left out; what only sounds like one stays readable."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncagent.support import redaction
from syncagent.support.redaction import REDACTED

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.~+/"
SECRETS = st.text(ALPHABET, min_size=8, max_size=30).map("s3cr3T".__add__)
NAMES = st.sampled_from(
    [
        "token", "key", "secret", "password", "passwd", "pwd", "api-key", "api_key", "apiKey", "API_KEY", "hf-token",
        "hub_token", "hubToken", "wandb.api_key", "auth", "credential", "credentials", "aws-secret-access-key",
        "authtoken",
        "my.db.password", "access_token", "private-key", "passphrase", "client-secret", "secret_id", "token-for-hub",
        "passwords", "secrets", "keys", "WANDB_API_KEY", "authorization", "bearer",
    ]
)  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(name=NAMES, secret=SECRETS, before=st.sampled_from([(), ("--lr", "0.1"), ("--flag",), ("data",)]))
def test_the_value_of_an_option_that_is_named_like_a_secret_never_shows(name, secret, before):
    """In every way in which options are written; what stands around it stays."""
    for words in (
        (f"--{name}", secret),
        (f"--{name}={secret}",),
        (f"-{name}", secret),
        (f"{name}={secret}",),
        (f"+{name}={secret}",),
        (f"++{name}={secret}",),
        ("--env", f"{name}={secret}"),
        ("-o", f"a=1,{name}={secret},b=2"),
        ("--config", f'{{"lr": 1, "{name}": "{secret}"}}'),
        ("--config", f"{{'{name}': '{secret}'}}"),
    ):
        shown = redaction.argv(("train.py", *before, *words, "--epochs", "3"))
        assert secret not in " ".join(shown), words
        assert shown[: 1 + len(before)] == ("train.py", *before)
        assert shown[-2:] == ("--epochs", "3")


@pytest.mark.parametrize(
    "line",
    [
        "--tokenizer bert", "--max-tokens 100", "--max-tokens=4k", "--num-key-value-heads 8", "--key-frames 3",
        "--keyboard qwerty", "--monkey x", "--use-auth-token --lr 1", "--push-token=true", "lr=0.1 model=resnet",
        "-p 8080", "--author me", "--authors me", "--path /a/key.pem", "--data s3://bucket/key/x",
        "+trainer.max_steps=5",
        "--tokens-per-batch 1_000", "a.py:12", "--compass north", "--patience 3", "--pinned x",
        '--config {"lr":1}', "--turkey=x", "C:\\key\\x",
    ],
)  # fmt: skip
def test_what_only_sounds_like_a_secret_stays(line):
    assert " ".join(redaction.argv(line.split())) == line


def test_several_values_of_one_option_are_left_out():
    """Of those named in the plural, up to the next option."""
    assert redaction.argv(["--api-keys", "a1", "b", "--x", "y"]) == ("--api-keys", REDACTED, REDACTED, "--x", "y")
    assert redaction.argv(["--api-key", "a1", "data", "y"]) == ("--api-key", REDACTED, "data", "y")


@pytest.mark.parametrize(
    "token",
    [
        "hf_" + "a1B2" * 8, "sk-" + "a1B2" * 8, "ghp_" + "a1B2" * 9, "glpat-" + "a1B2" * 5, "AKIA" + "A1B2" * 4,
        "xoxb-1234567890-abcdef", "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    ],
)  # fmt: skip
def test_tokens_of_large_services_are_known_by_their_form(token):
    """Wherever they stand."""
    assert redaction.argv(["train.py", token]) == ("train.py", REDACTED)
    assert token not in redaction.text(f"it said {token}.")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://host:4318/v1", "http://host:4318/v1"),
        ("http://user:pw@host/v1?token=abc#f", "http://host/v1"),
        ("https://apikey@host", "https://host"),
        ("http://u:p/w@host:1/x", "http://host:1/x"),
        ("http://u:p?w@host/x", "http://host/x"),
        ("http://u:p#w@host", "http://host"),
        ("u:p@host:4317", "host:4317"),
        ("host:4317", "host:4317"),
        ("http://[::1]:4318/a@b", "http://[::1]:4318/a@b"),
        ("http://host/a@b", "http://host/a@b"),
        ("", ""),
        ("://", "://"),
    ],
)
def test_an_address_has_neither_user_nor_query(address, shown):
    assert redaction.url(address) == shown


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(secret=SECRETS, odd=st.sampled_from(["", "@", "/", ":", "%40", "?", "#"]))
def test_an_error_that_quotes_an_address_does_not_quote_its_secrets(secret, odd):
    """As urllib3 and requests do, whole or in pieces."""
    password = f"{secret}{odd}x1"
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://me:{password}@host:4318/v1?token={secret}&a=b",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": f"authorization=Bearer%20{secret},x-key={secret}",
    }
    for said in (
        f"cannot reach http://me:{password}@host:4318/v1?token={secret}&a=b, it said",
        f"HTTPConnectionPool(host='host'): Max retries exceeded with url: /v1?token={secret}&a=b/v1/traces (Caused by",
        f"Failed to parse: me:{password}@host",
        f"header 'Bearer {secret}' is not allowed",
        f"{{'authorization': 'Bearer {secret}', 'x-key': '{secret}'}}",
    ):
        assert secret not in redaction.text(said, environment), said


@pytest.mark.parametrize(
    "said",
    [
        "KeyError: 'total'", "no such key: 'total'", "basic training of the model", "cannot be read (what?) a=b",
        "dropped: 3 (the queue was full)", "SYNCAGENT_POLICY='loud' is not allowed", "at auth.py:12 in token.py:main",
        "http://host:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY='/a/b.pem' is not allowed", "aten::item at train.py:3", "[redacted]",
    ],
)  # fmt: skip
def test_other_sentences_stay_as_they_are(said):
    assert redaction.text(said, {"OTEL_EXPORTER_OTLP_HEADERS": "x-team=ab,a=trai"}) == said
    assert redaction.text(redaction.text(said)) == redaction.text(said)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(words=st.lists(st.text(max_size=20), max_size=5))
def test_any_words_can_be_asked_about(words):
    """And none is added or lost."""
    assert len(redaction.argv(words)) == len(words)
    for word in words:
        redaction.url(word)
        redaction.text(word, {"HTTP_PROXY": word})


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter2"',
        "password: str | None = 'hunter2'",
        'password: Optional[str] = "hunter2"',
        'db_password = """hunter2"""',
        "secret = '''hunter2",
        'os.environ["DB_PASSWORD"] = "hunter2"',
        'os.environ.setdefault("DB_PASSWORD", "hunter2")',
        'os.getenv("DB_PASSWORD", "hunter2")',
        'if password == "hunter2":',
        'password += "hunter2"',
        'if (password := "hunter2"):',
        'password = ("hunter2")',
        'passwords = ["hunter2"]',
        'connect(user="a", password=b"hunter2")',
        '{"password": "hunter2"}',
        'password = "a\\"hunter2"',
        'password = "hunter2',
        'API_KEY = "hunter2-hunter2"',
        'hub_token = "hunter2-hunter2"',
        'get("https://user:hunter2@host/path?token=hunter2")',
    ],
)
def test_a_secret_in_a_line_of_code_is_left_out(line):
    assert "hunter2" not in redaction.source(line)
    assert redaction.REDACTED in redaction.source(line) or "://" in line


@pytest.mark.parametrize(
    "line",
    [
        'tokenizer.pad_token = "[PAD]"',
        'rows.sort(key="loss")',
        '{"key": "input_ids"}',
        '{"eos_token": "</s>"}',
        "token = next(tokens)",
        "password = getpass()",
        "order = sorted(found, key=lambda key: key.rank)",
        'loss = model(batch["token_ids"], labels=batch["key"])',
    ],
)
def test_ordinary_code_stays(line):
    assert redaction.source(line) == line
