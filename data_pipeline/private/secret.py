"""Keys, tokens and passwords: those whose form their issuer published, and random values given to names like `secret`.

A password that reads like a word is not found.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

from data_pipeline.private.found import Found
from data_pipeline.private.page import Page
from data_pipeline.private.surroundings import JOINED, before

_END = r"(?![A-Za-z0-9])"
_LETTERS = "[A-Za-z0-9]"
_GITLAB = ("pat", "dt", "rt", "ptt", "soat", "cbt", "imt", "agent", "oas", "ft", "ffct")

# (text that every match holds; pattern).
FORMS = tuple(
    (needle, re.compile(pattern))
    for needle, pattern in (
        ("AKIA", rf"AKIA[A-Z0-9]{{16}}{_END}"),  # AWS
        ("ASIA", rf"ASIA[A-Z0-9]{{16}}{_END}"),
        ("ABIA", rf"ABIA[A-Z0-9]{{16}}{_END}"),
        ("ACCA", rf"ACCA[A-Z0-9]{{16}}{_END}"),
        ("A3T", rf"A3T[A-Z0-9]{{17}}{_END}"),
        ("ABSK", r"ABSK[A-Za-z0-9+/]{100,269}={0,2}"),
        *((f"gh{kind}_", rf"gh{kind}_{_LETTERS}{{36,255}}") for kind in "pousr"),  # GitHub
        ("github_pat_", r"github_pat_[A-Za-z0-9_]{22,255}"),
        *((f"gl{kind}-", rf"gl{kind}-[A-Za-z0-9_.\-]{{20,80}}") for kind in _GITLAB),
        ("GR1348941", r"GR1348941[A-Za-z0-9_\-]{20}"),
        ("xox", r"xox[abeoprs]-[A-Za-z0-9\-]{10,255}"),  # Slack
        ("xapp-", r"xapp-[0-9]-[A-Za-z0-9\-]{10,255}"),
        ("hooks.slack.com/", r"hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9+/]{20,80}"),
        ("discord", r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[A-Za-z0-9_\-]{60,80}"),
        (".webhook.office.com/", r"[a-z0-9]{1,40}\.webhook\.office\.com/webhookb2/[A-Za-z0-9@/\-]{60,200}"),
        ("AIza", r"AIza[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])"),  # Google
        ("ya29.", r"ya29\.[A-Za-z0-9_\-]{20,500}"),
        ("GOCSPX-", r"GOCSPX-[A-Za-z0-9_\-]{28}"),
        ("_live_", rf"(?:sk|rk|pk)_live_{_LETTERS}{{16,255}}"),  # Stripe
        ("_test_", rf"(?:sk|rk)_test_{_LETTERS}{{16,255}}"),
        ("whsec_", r"whsec_[A-Za-z0-9+/]{24,64}"),
        ("hf_", rf"hf_{_LETTERS}{{34,64}}(?![A-Za-z0-9_])"),  # Hugging Face
        ("api_org_", rf"api_org_{_LETTERS}{{34}}"),
        ("T3BlbkFJ", r"sk-(?:proj-|svcacct-|admin-)?[A-Za-z0-9_\-]{20,100}T3BlbkFJ[A-Za-z0-9_\-]{20,100}"),  # OpenAI
        ("sk-", r"sk-(?:proj|svcacct|admin|ant-api[0-9]{2}|ant-admin[0-9]{2}|or-v1|lf)-[A-Za-z0-9_\-]{32,255}"),
        ("sk-", rf"sk-(?=[A-Za-z]*[0-9]){_LETTERS}{{32,64}}{_END}"),
        ("eyJ", r"eyJ[A-Za-z0-9_\-]{8,}\.eyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}"),  # JWT
        ("npm_", rf"npm_{_LETTERS}{{36}}{_END}"),
        ("pypi-", r"pypi-AgE[A-Za-z0-9_\-]{50,1000}"),
        ("rubygems_", r"rubygems_[a-f0-9]{48}"),
        ("CLOJARS_", r"CLOJARS_[a-z0-9]{60}"),
        ("dckr_", r"dckr_(?:pat|oat)_[A-Za-z0-9_\-]{27,36}"),
        ("_v1_", r"do[opr]_v1_[a-f0-9]{64}"),  # DigitalOcean
        ("shp", r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}"),  # Shopify
        ("SG.", r"SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{32,64}"),  # SendGrid
        ("key-", rf"key-[0-9a-f]{{32}}{_END}"),  # Mailgun
        ("-us", rf"[0-9a-f]{{32}}-us[0-9]{{1,2}}{_END}"),  # Mailchimp
        ("xkeysib-", r"xkeysib-[a-f0-9]{64}-[A-Za-z0-9]{16}"),  # Brevo
        ("SK", rf"SK[0-9a-f]{{32}}{_END}"),  # Twilio
        ("AC", rf"AC[0-9a-f]{{32}}{_END}"),
        (":AA", r"[0-9]{8,10}:AA[A-Za-z0-9_\-]{33}(?![A-Za-z0-9_\-])"),  # Telegram
        ("hvs.", r"hvs\.[A-Za-z0-9_\-]{24,300}"),  # Vault
        (".atlasv1.", r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_\-=]{60,70}"),  # Terraform
        ("AGE-SECRET-KEY-1", r"AGE-SECRET-KEY-1[A-Z0-9]{58}"),
        ("EAAA", r"EAAA[A-Za-z0-9_\-]{60}"),  # Square
        ("sq0", r"sq0(?:atp|csp|idp)-[A-Za-z0-9_\-]{22,60}"),
        ("EAAC", rf"EAAC{_LETTERS}{{100,}}"),  # Facebook
        ("dapi", rf"dapi[0-9a-h]{{32}}(?:-[0-9])?{_END}"),  # Databricks
        ("glsa_", r"glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}"),  # Grafana
        ("glc_", r"glc_[A-Za-z0-9+/]{32,400}={0,2}"),
        ("lin_", rf"lin_(?:api|oauth)_{_LETTERS}{{32,64}}"),  # Linear
        ("PMAK-", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}"),  # Postman
        ("pul-", rf"pul-[a-f0-9]{{40}}{_END}"),  # Pulumi
        ("sbp_", rf"sbp_[a-f0-9]{{40}}{_END}"),  # Supabase
        ("figd_", r"figd_[A-Za-z0-9_\-]{40,64}"),  # Figma
        ("TT3", r"AT[AC]TT3[A-Za-z0-9_\-=]{60,255}"),  # Atlassian
        ("fo1_", r"fo1_[A-Za-z0-9_\-]{43}"),  # Fly.io
        ("NRAK-", r"NRAK-[A-Za-z0-9_\-]{19,64}"),  # New Relic
        ("ntn_", rf"ntn_[0-9]{{11}}{_LETTERS}{{35}}"),  # Notion
        ("secret_", rf"secret_{_LETTERS}{{43}}{_END}"),
        ("r8_", rf"r8_{_LETTERS}{{37}}{_END}"),  # Replicate
        ("gsk_", rf"gsk_{_LETTERS}{{52}}{_END}"),  # Groq
        ("xai-", rf"xai-{_LETTERS}{{70,90}}"),
        ("pplx-", rf"pplx-{_LETTERS}{{40,60}}"),
        ("LTAI", rf"LTAI{_LETTERS}{{16,24}}{_END}"),  # Alibaba
        ("AKID", rf"AKID{_LETTERS}{{32}}{_END}"),  # Tencent
        ("AKCp", rf"AKCp{_LETTERS}{{69,73}}{_END}"),  # Artifactory
        ("cmVmd", rf"cmVmd{_LETTERS}{{59}}{_END}"),
        ("Q~", r"[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.\-]{31,34}"),  # Azure
        ("ops_eyJ", r"ops_eyJ[A-Za-z0-9+/]{250,}={0,3}"),  # 1Password
        ("A3-", r"A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})(?:-[A-Z0-9]{5}){3}"),
        ("tskey-", r"tskey-[a-z]{2,12}-[A-Za-z0-9]{8,32}(?:-[A-Za-z0-9]{8,64})?"),  # Tailscale
        ("sntry", r"sntry[su]_[A-Za-z0-9+/=_]{64,400}"),  # Sentry
        ("FLWSECK", r"FLWSECK(?:_TEST)?-[A-Za-z0-9]{12,40}(?:-X)?"),
        ("EZAK", rf"EZAK{_LETTERS}{{54}}"),
        ("AVNS_", r"AVNS_[A-Za-z0-9\-_]{19}"),  # Aiven
        ("nvapi-", r"nvapi-[A-Za-z0-9_\-]{60,70}"),  # NVIDIA
        ("apify_api_", rf"apify_api_{_LETTERS}{{36}}"),
        ("dt0c01.", r"dt0c01\.[A-Za-z0-9]{24}\.[A-Za-z0-9]{64}"),  # Dynatrace
    )
)

_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    # Also without its end: a cut-off key is still a key.
    r"(?:.{0,20000}?-----END (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|[\sA-Za-z0-9+/=:,\-]{0,20000})",
    re.DOTALL,
)

# What a secret is named by: letters that every such name holds, and what must stand before and after them.
_OF_KEYS = "api|access|account|private|encryption|signing|master|license|auth|client|app|subscription|service|deploy"
_NAMES = (
    *((root, "(?i)s$", "") for root in ("ecret", "ECRET")),
    *((root, "(?i)p$", r"(?:or)?d|ort") for root in ("assw", "ASSW")),
    *((root, "(?i)p$", "") for root in ("assphrase", "ASSPHRASE", "asscode", "ASSCODE")),
    *((root, r"(?:^|[^A-Za-z])[tT]$|[a-z]T$", "") for root in ("oken", "OKEN")),
    *(
        (root, rf"(?i)(?:{_OF_KEYS})[ _-]?$", "")
        for root in ("key", "Key", "KEY")
    ),
    *((root, "(?i)c$", "s?") for root in ("redential", "REDENTIAL")),
    *((root, r"(?i)(?:^|[^a-z])$", "") for root in ("pwd", "PWD")),
    *((root, r"(?:^|[^A-Za-z])$", r"(?=[\"']?\s{0,4}[:=])") for root in ("pass", "Pass", "PASS", "auth", "AUTH")),
    ("ontraseña", "[cC]$", ""),
    ("ot de passe", "[mM]$", ""),
)  # fmt: skip
_OPTION = re.compile(r"--[\w-]*$")  # `--api-key VALUE`
_BEFORE = 16  # characters in front of the letters that are looked at
_VALUE = r"(?P<value>[A-Za-z0-9+/_.~!#$%^*\-]{8,512}={0,2})" + rf"(?!{JOINED}|\()"
_GIVEN = (
    r"[\w-]{0,20}(?P<link>[\"'\]`]{0,2}\s{0,4}(?::=|=>|->|[:=]|\s(?:is|was)\b:?|>)\s{0,4}[\"'`]?|\s{1,4}[\"'`]?)"
    rf"(?:(?:Basic|Bearer|Token)\s|base64:)?{_VALUE}"
)
_NAMED = tuple((root, re.compile(front), re.compile(f"(?i)(?:{rest}){_GIVEN}")) for root, front, rest in _NAMES)
# Values whose name says enough that a blank or a sign may stand between: headers and connection strings.
_SENT = tuple(
    (needle, re.compile(pattern))
    for needle, pattern in (
        ("earer ", rf"[Bb]earer\s{_VALUE}"), ("BEARER", rf"BEARER\s{_VALUE}"), ("Basic ", rf"Basic\s{_VALUE}"),
        ("-u ", rf"-u\s[\"']?[\w.@\-]{{1,64}}:{_VALUE}"),
        *((name, rf"{name}=(?P<value>[A-Za-z0-9+/%]{{40,100}}={{0,2}})") for name in ("AccountKey",
        "SharedAccessKey", "sig")),
    )
)  # fmt: skip
NEEDLES = (
    *(needle for needle, _ in FORMS), "PRIVATE KEY", *(root for root, _, _ in _NAMED), *(needle for needle, _ in _SENT)
)  # fmt: skip
# Bits per character. Random hex has at most 4, random base64 at most 6; words and identifiers of 16 letters about 3.
_FEWEST_BITS = 3.2
_MOST_CHANGES = 0.4  # of a character's case to the next one's, in identifiers; half of those of random letters
_LONG_BARE_VALUE = 20  # of one that only a blank parts from its name
_FEWEST_DIGITS = 2  # of a short value
# Words and numbers with signs between them, as in `name_of_thing_2` and `/etc/file-2024.bak`.
_IDENTIFIER = re.compile(r"[._/\-]*(?:[A-Za-z]+|[0-9]+)(?:[._/\-]+(?:[A-Za-z]+|[0-9]+))+[._/\-]*")
_LONG_VALUE = 16  # characters; a shorter value must hold small and capital letters and digits


def find(page: Page) -> Iterator[Found]:
    """Keys and secrets."""
    text = page.text
    if page.held.isdisjoint(NEEDLES):
        return
    for needle, pattern in FORMS:
        if needle in page.held:
            for match in pattern.finditer(text):
                if match.start() and text[match.start() - 1].isalnum() and text[match.start() - 1].isascii():
                    continue  # the middle of a longer word
                value = match[0].rstrip(".")  # of the sentence
                yield Found(match.start(), match.start() + len(value), "key", value)
    if "PRIVATE KEY" in page.held:
        for match in _PEM.finditer(text):
            yield Found(match.start(), match.end(), "key", "".join(match[0].split()))
    yield from _named(page)


def _named(page: Page) -> Iterator[Found]:
    text = page.text
    for root, front, given in _NAMED:
        if root not in page.held:
            continue
        for name in re.finditer(root, text):
            match = given.match(text, name.end())
            if match and front.search(text, max(0, name.start() - _BEFORE), name.start()):
                yield from _value(
                    match, linked=not match["link"].isspace() or _OPTION.search(before(text, name.start())) is not None
                )
    for needle, sent in _SENT:
        if needle not in page.held:
            continue
        for match in sent.finditer(text):
            yield from _value(match, linked=True)


def _value(match: re.Match[str], linked: bool) -> Iterator[Found]:
    value = match["value"].rstrip(".!")
    if _looks_random(value, linked):
        yield Found(match.start("value"), match.start("value") + len(value), "key", value)


def _looks_random(value: str, linked: bool) -> bool:
    """Letters and digits mixed, with the entropy of a random string: not an identifier, a path or a repeated filler."""
    digits, small = sum(c.isdigit() for c in value), any(c.islower() for c in value)
    capital, long = any(c.isupper() for c in value), len(value) >= _LONG_VALUE
    if not digits:
        # Without digits only what changes its case as often as chance does: words of `camelCase` do less.
        changes = sum(one.islower() != other.islower() for one, other in itertools.pairwise(value))
        return value.isalpha() and long and changes >= _MOST_CHANGES * len(value)
    if not (small or capital) or _IDENTIFIER.fullmatch(value):
        return False
    if not linked and (not value.isalnum() or len(value) < _LONG_BARE_VALUE):
        return False
    if not long and (not (small and capital) or digits < _FEWEST_DIGITS or "." in value or "/" in value):
        return False
    counts = Counter(value)
    bits = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return bits >= (_FEWEST_BITS if long else math.log2(len(value)) - 0.5)
