"""The `evaluate` module of exact match; it needs no network."""

import re
import string

from hf_cxr.metrics import exact_match, normalize
from hf_cxr.metrics.module import TextMetric


class ExactMatch(TextMetric):
    """Share of studies whose two texts are equal, with inputs and key of the Hub's `exact_match`; and, as
    `exact_match_words`, of those that are the same but for white space, as the kit's reports have it."""

    definition = "exact_match: equal (evaluate's exact_match); exact_match_words: equal but for white space"

    def score(
        self,
        predictions,
        references,
        normalization,
        regexes_to_ignore=None,
        ignore_case=False,
        ignore_punctuation=False,
        ignore_numbers=False,
    ):
        dropped = string.punctuation * ignore_punctuation + string.digits * ignore_numbers

        def plain(texts):
            for pattern in regexes_to_ignore or ():
                texts = [re.sub(pattern, "", text) for text in texts]
            texts = [text.lower() if ignore_case else text for text in normalize(texts, normalization)]
            return [text.translate(str.maketrans("", "", dropped)) for text in texts]

        said, true = plain(predictions), plain(references)
        equal = [a == b for a, b in zip(said, true, strict=True)]
        return {"exact_match": sum(equal) / len(equal), "exact_match_words": exact_match(said, true)}
