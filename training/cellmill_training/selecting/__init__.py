"""Choosing what to label: tiles that cover the tissue, that hold rare types, and on which classifiers disagree.

After Adjadj et al. 2025, "Building a diverse dataset with active learning". From slides to a list of tiles:

    encoding       pixels of tiles -> features, by a packaged network or a foundation model
    slide_tiles    slide -> its tiles of tissue with their features, kept on disk
    seeds          cell set, labelled data sets -> which tiles are known to hold which types
    classifiers    seeds -> for each rare type, an ensemble that gives a tile's probability of holding it
    pools          features, probabilities -> the tiles each of the three methods proposes
    drawing        pools -> the tiles to label
    project        tiles -> a QuPath project ready for annotation
"""
