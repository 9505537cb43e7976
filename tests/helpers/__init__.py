"""What several tests share: small networks, recipes, folders of data, oracles, and the programs that tests start."""
