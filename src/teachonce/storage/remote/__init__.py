"""Object stores and web servers as a ``Storage``, over obstore (extra ``remote``): clients, retries, writes, the cache.
And data sets of the Hugging Face hub, over huggingface_hub (extra ``huggingface``).

Nothing is renamed, locked or listed in a hot loop here: an object appears by one put. Must not import more than
``errors`` and the modules of ``storage`` itself.
"""
