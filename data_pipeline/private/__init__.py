"""Personal data and secrets in texts: found by form, validated, replaced.

A file a kind: a cheap test first, as most documents hold none, then a pattern, then what makes the value real (a check
digit, a numbering plan, a known prefix, the word before it). Look-alikes stay: versions, hashes, dates, part numbers.
What has no form is not found: names, postal addresses, a password that reads like a word.
"""
