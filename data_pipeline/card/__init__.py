"""The data card: what a curated collection is made of, what was left out of it and why.

reasons   every decision that drops a document: its order, its explanation, its limits
tally     counts over documents, one of each task, that add up to the values of `data_card.json`
changes   what differs from the card of an earlier version
page      those values as a page for people; `elements` and `style` are what it is made of
"""
