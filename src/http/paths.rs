//! The paths of an endpoint: one pattern, and the version prefixes under which clients know it.

/// All paths of one endpoint. Patterns name their arguments in braces, `/rooms/{roomId}/send`;
/// a last segment `{name?}` may be absent, with or without its slash, and is then empty.
#[derive(Clone, Debug)]
pub struct Paths {
    patterns: Vec<String>,
}

/// `/_matrix/client/v3`, and the older and unstable names of that version. Not every endpoint had
/// all of them, but proxies are configured as if it had.
const V3: &[&str] = &["v3", "r0", "unstable", "v2_alpha", "api/v1"];

/// An endpoint of `/_matrix/client/v3`, also under `r0`, `unstable`, `v2_alpha` and `api/v1`.
pub fn v3(pattern: &str) -> Paths {
    Paths { patterns: Vec::new() }.under(V3, pattern)
}

/// An endpoint of `/_matrix/client/v1`.
pub fn v1(pattern: &str) -> Paths {
    Paths { patterns: Vec::new() }.under(&["v1"], pattern)
}

/// An endpoint under `/_matrix/client/unstable` only; the pattern starts with its feature's name.
pub fn unstable(pattern: &str) -> Paths {
    Paths { patterns: Vec::new() }.under(&["unstable"], pattern)
}

/// An endpoint of `/_matrix/media/v3`, also under `r0` and `v1`.
pub fn media_v3(pattern: &str) -> Paths {
    let patterns = ["v3", "r0", "v1"].map(|v| format!("/_matrix/media/{v}{pattern}"));
    Paths { patterns: patterns.into() }
}

/// An endpoint of `/_matrix/federation/v1`.
pub fn federation_v1(pattern: &str) -> Paths {
    raw(&format!("/_matrix/federation/v1{pattern}"))
}

/// An endpoint of `/_matrix/federation/v2`.
pub fn federation_v2(pattern: &str) -> Paths {
    raw(&format!("/_matrix/federation/v2{pattern}"))
}

/// An endpoint whose whole path is given.
pub fn raw(pattern: &str) -> Paths {
    Paths { patterns: vec![pattern.to_owned()] }
}

impl Paths {
    fn under(mut self, versions: &[&str], pattern: &str) -> Self {
        self.patterns.extend(versions.iter().map(|v| format!("/_matrix/client/{v}{pattern}")));
        self
    }

    /// The same endpoint under further paths.
    #[must_use]
    pub fn or(mut self, other: Paths) -> Self {
        self.patterns.extend(other.patterns);
        self
    }

    /// The pattern that stands for the endpoint in logs and metrics.
    pub(crate) fn name(&self) -> &str {
        self.patterns.first().map_or("", String::as_str)
    }

    /// Every pattern, optional last segments spelt out.
    pub(crate) fn expanded(&self) -> Vec<String> {
        let mut all = Vec::with_capacity(self.patterns.len());
        for pattern in &self.patterns {
            match pattern.strip_suffix("?}").and_then(|p| p.rsplit_once("/{").map(|s| (p, s.0))) {
                Some((named, stem)) => {
                    all.extend([format!("{named}}}"), format!("{stem}/"), stem.to_owned()]);
                }
                None => all.push(pattern.clone()),
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_known_under_all_its_versions() {
        assert_eq!(
            v3("/sync").expanded(),
            [
                "/_matrix/client/v3/sync",
                "/_matrix/client/r0/sync",
                "/_matrix/client/unstable/sync",
                "/_matrix/client/v2_alpha/sync",
                "/_matrix/client/api/v1/sync",
            ]
        );
        assert_eq!(
            v1("/a").or(unstable("/org.x/a")).expanded(),
            ["/_matrix/client/v1/a", "/_matrix/client/unstable/org.x/a"]
        );
    }

    #[test]
    fn an_optional_last_segment_gives_three_patterns() {
        assert_eq!(
            raw("/s/{type}/{key?}").expanded(),
            ["/s/{type}/{key}", "/s/{type}/", "/s/{type}"]
        );
    }
}
