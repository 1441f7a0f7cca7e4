"""Where documents begin and end."""

import torch

from adaptsft.data.documents import Documents, padded_length


def test_flash_and_varlen_are_given_the_longest_document_not_the_pack():
    offsets = torch.tensor([0, 7, 207, 208, 8192], dtype=torch.int32)
    for end, expected in ((3, 256), (2, 128), (5, 8192)):
        chosen = offsets[:end]
        documents = Documents.build(chosen, with_buckets=False)
        assert len(documents.longest) == expected >= int(chosen.diff().max())
    assert [padded_length(n) for n in (1, 128, 129, 256, 257)] == [128, 128, 256, 256, 512]
