//! Figures that are worked out when somebody reads the metrics page, and cost nothing before.

/// One line of the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    pub name: &'static str,
    pub labels: Vec<(&'static str, String)>,
    pub value: f64,
}

/// The figures of one reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sheet {
    figures: Vec<Figure>,
}

impl Sheet {
    /// Adds a figure. What the name means is in the catalogue of the metrics page.
    pub fn add(&mut self, name: &'static str, labels: &[(&'static str, &str)], value: f64) {
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.figures.push(Figure { name, labels, value });
    }

    /// [`Sheet::add`] for whole numbers; beyond 2^53 they lose their last digit.
    pub fn count(&mut self, name: &'static str, labels: &[(&'static str, &str)], value: u64) {
        self.add(name, labels, value as f64);
    }

    /// All of them, in the order in which they were added.
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }
}
