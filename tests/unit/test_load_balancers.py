import torch
from torch.nn.attention.flex_attention import create_block_mask

from titan_wlb.compat.load_balancers import BLOCK, blocks_of_rows, head_tail, per_document_head_tail, ptrr


def block_mask(lengths):
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))

    def mask(batch, head, query, key):
        return (document[query] == document[key]) & (query >= key)

    return create_block_mask(mask, None, None, sum(lengths), sum(lengths), device="cpu", BLOCK_SIZE=BLOCK)


def test_counts_of_key_blocks_are_those_of_flex_attentions_mask():
    for lengths in ([1024], [300, 1, 127, 596], [128, 256, 640], [5] * 100 + [524]):
        mask = block_mask(lengths)
        counts = mask.kv_num_blocks + (mask.full_kv_num_blocks if mask.full_kv_num_blocks is not None else 0)
        assert counts[0, 0].tolist() == blocks_of_rows(lengths).tolist()


def test_every_row_stands_in_each_order_once():
    for order in (head_tail, per_document_head_tail, ptrr):
        assert sorted(order([512, 256, 1280], 4).tolist()) == list(range(2048))


def test_the_per_document_order_of_this_version_is_by_document():
    assert per_document_head_tail([4, 4], 2).tolist() == [0, 3, 1, 2, 4, 7, 5, 6]
    assert head_tail([4, 4], 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
