"""In which countries the readers of a language live: whose ways of writing numbers a document may use."""

from __future__ import annotations

# ISO 639-1 -> ISO 3166, the largest first.
OF_LANGUAGE = {
    language: tuple(countries.split())
    for language, countries in {
        "en": "US GB CA AU IE NZ IN ZA SG HK NG KE PH", "de": "DE AT CH LI LU", "fr": "FR BE CH CA LU MA TN DZ SN CI",
        "es": "ES MX AR CO CL PE VE EC UY GT CR BO DO US", "it": "IT CH SM", "pt": "BR PT AO MZ", "nl": "NL BE",
        "ru": "RU KZ BY UA", "uk": "UA", "be": "BY", "pl": "PL", "cs": "CZ", "sk": "SK", "hu": "HU", "ro": "RO MD",
        "bg": "BG", "el": "GR CY", "tr": "TR", "sv": "SE FI", "no": "NO", "nb": "NO", "nn": "NO", "da": "DK",
        "fi": "FI",
        "et": "EE", "lv": "LV", "lt": "LT", "hr": "HR BA", "sr": "RS BA ME", "bs": "BA", "sl": "SI", "mk": "MK",
        "sq": "AL XK", "is": "IS", "ga": "IE", "ca": "ES AD", "gl": "ES", "eu": "ES FR", "br": "FR", "he": "IL",
        "ar": "EG SA AE MA DZ TN JO LB KW QA IQ", "fa": "IR AF", "ur": "PK IN", "hi": "IN", "bn": "BD IN",
        "ta": "IN LK",
        "te": "IN", "mr": "IN", "gu": "IN", "kn": "IN", "ml": "IN", "pa": "IN PK", "ne": "NP", "si": "LK",
        "zh": "CN TW HK SG MO", "ja": "JP", "ko": "KR", "vi": "VN", "th": "TH", "id": "ID", "ms": "MY SG", "tl": "PH",
        "km": "KH", "lo": "LA", "my": "MM", "ka": "GE", "hy": "AM", "az": "AZ", "kk": "KZ", "uz": "UZ", "sw": "KE TZ",
        "af": "ZA", "zu": "ZA", "lb": "LU", "mt": "MT",
    }.items()
}  # fmt: skip
# Where the language is not known, or a number says itself that it is a telephone number.
LARGEST = (
    "US",
    "GB",
    "DE",
    "FR",
    "IT",
    "ES",
    "IN",
    "BR",
    "CN",
    "JP",
    "KR",
    "RU",
    "NL",
    "PL",
    "AU",
    "MX",
    "SE",
    "CH",
    "TR",
)


def of(language: str) -> tuple[str, ...]:
    """The countries of a language; none where it is not known."""
    return OF_LANGUAGE.get(language, ())
