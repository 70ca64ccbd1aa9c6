"""Statistics of labels as pure functions of arrays: no database, no random state but what is passed
in.

    estimate, bootstrap        a figure with its interval and its n; resampling of whole items
    proportions                shares: Wilson, ratio by item, difference of two, sample size of a comparison
    pair_agreement, kappa,     how much labelers agree
    alpha, rank_correlation
    votes, newton              blind comparisons as counts; the solver of the models below
    bradley_terry, davidson,   how good the compared policies are
    plackett_luce, swap
    dawid_skene, crowd         how good each labeler is
    position, regression,      whether something else than quality decides
    straight_lining, speed
    design                     how much one more comparison would tell

docs/label-statistics.md has the formulas and their sources. Arrays carry their shape in the name: I
items, W labelers, A compared policies, O categories, E bootstrap draws, K responses of an item."""
