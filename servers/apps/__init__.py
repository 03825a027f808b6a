"""The app manifests that come with the package, and the base that every manifest is merged over."""
