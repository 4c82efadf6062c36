"""Time: artifacts and exported models beside their peers, interleaved, with what else ran and how far the machine's limit is.

The package of the verb `bench` (a package of that name would stand in the verb's place).
"""
