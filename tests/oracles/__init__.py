"""Values that published packages compute on fixed inputs, kept in a file where the packages are too heavy to install for every test."""
