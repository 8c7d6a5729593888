//! JSON that is written as it goes out, with parts that are JSON already.

use serde::Serialize;

/// A JSON object at the end of a buffer. [`Object::end`] closes it.
#[must_use]
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    is_empty: bool,
}

impl<'a> Object<'a> {
    pub fn begin(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Writes the name of a member; its value is to be written to the buffer that is returned.
    pub fn member(&mut self, name: &str) -> &mut Vec<u8> {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        write(self.out, name);
        self.out.push(b':');
        self.out
    }

    pub fn value(&mut self, name: &str, value: &(impl Serialize + ?Sized)) {
        write(self.member(name), value);
    }

    /// A member whose value is JSON text.
    pub fn raw(&mut self, name: &str, json: &str) {
        self.member(name).extend_from_slice(json.as_bytes());
    }

    /// A member that is an object of its own.
    pub fn object(&mut self, name: &str) -> Object<'_> {
        Object::begin(self.member(name))
    }

    /// `name: {"events": […]}` with `one` writing each of `items`.
    pub fn events<T>(
        &mut self,
        name: &str,
        items: impl IntoIterator<Item = T>,
        one: impl FnMut(&mut Vec<u8>, T),
    ) {
        let mut section = self.object(name);
        array(section.member("events"), items, one);
        section.end();
    }

    pub fn end(self) {
        self.out.push(b'}');
    }
}

/// Appends a JSON array with `one` writing each of `items`.
pub fn array<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut one: impl FnMut(&mut Vec<u8>, T),
) {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        one(out, item);
    }
    out.push(b']');
}

/// Appends `value`.
pub fn write(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("strings, numbers and raw JSON always serialise");
}
