"""The cell set on disk or in a bucket: parts of slides under way, committed tables, masks and statuses, and readers.

In: arrays and Arrow tables of finished fields. Out: the layout described in docs and in `cellmill.store.layout`.
Everything goes through one small module of storage primitives, `cellmill.store.objects`.
"""
