"""Whether the labels of a person, and of a team, can be trusted.

    judgment    one ranking, as these figures see it; made of a row of an export
    gold        accuracy on items with a known answer
    monitor     figures of one person, and which of them warn or pause
    screening   the questionnaire's four criteria and the decision that they suggest
    team        figures of everybody together

Nothing here decides: a pause is reversible and names its reason, admission is proposed, and an
owner decides both. Labels of a paused person are held back and never dropped."""
