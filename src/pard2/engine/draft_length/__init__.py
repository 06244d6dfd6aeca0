"""How much to propose in a cycle: tokens of a chain, or nodes of a tree (docs/draft_length.md).

acceptance: acceptance rates by position, learnt from past cycles
pass_times: seconds of the models' passes, learnt from past passes
plain: the rule by which the lengths of chains are chosen, by trying all
vectorised: the same rule, fast
adaptive: the policy that decoding uses: this rule, and trials of other lengths
tree_size: the policy for trees
"""
