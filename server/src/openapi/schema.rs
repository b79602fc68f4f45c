//! The one schema table (`schema.txt`), read once: types, fields and how patches merge them.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    String,
    Int32,
    Int64,
    Bool,
    Bytes,
    /// Any object.
    Object,
    IntOrString,
    Quantity,
    Time,
    MicroTime,
    /// Index into `Schema::types`.
    Ref(usize),
    List(Box<Type>),
    Map(Box<Type>),
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub ty: Type,
    pub required: bool,
    /// Keys a list of objects is merged by; the first is the strategic-merge key.
    pub keys: Vec<String>,
    /// A list of plain values that patches add to.
    pub set: bool,
    pub retain_keys: bool,
    /// Field number of the protobuf form, 0 when not given.
    pub number: u64,
    pub text: String,
}

#[derive(Debug)]
pub struct TypeDef {
    /// Definition prefix, for example `io.k8s.api.core.v1`.
    pub package: String,
    pub name: String,
    pub text: String,
    /// May hold fields the table does not list.
    pub open: bool,
    pub fields: Vec<Field>,
}

impl TypeDef {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// `io.k8s.api.core.v1.Pod`.
    pub fn definition(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

/// All types.
pub struct Schema {
    pub types: Vec<TypeDef>,
    by_name: HashMap<String, usize>,
}

static SCHEMA: LazyLock<Schema> = LazyLock::new(|| parse(include_str!("schema.txt")));

/// The table.
pub fn schema() -> &'static Schema {
    &SCHEMA
}

impl Schema {
    /// The root type of a kind.
    pub fn of(&self, group: &str, kind: &str) -> Option<&TypeDef> {
        let package = package_of(group);
        self.by_name.get(&format!("{package}.{kind}")).map(|i| &self.types[*i])
    }

    /// A type by its definition name.
    pub fn named(&self, definition: &str) -> Option<&TypeDef> {
        self.by_name.get(definition).map(|i| &self.types[*i])
    }

    pub fn at(&self, index: usize) -> &TypeDef {
        &self.types[index]
    }
}

/// The definition prefix of a group's version `v1`.
pub fn package_of(group: &str) -> String {
    let short = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("io.k8s.api.{short}.v1")
}

fn parse(text: &str) -> Schema {
    let mut types: Vec<(TypeDef, Vec<String>)> = Vec::new();
    let mut by_name = HashMap::new();
    let mut package = String::new();
    for line in text.lines().filter(|l| !l.starts_with('%') && !l.trim().is_empty()) {
        if let Some(name) = line.strip_prefix("@ ") {
            package = name.trim().to_owned();
            continue;
        }
        let (head, text) = line.split_once(" | ").unwrap_or((line, ""));
        if let Some(field) = head.strip_prefix("  ") {
            if let Some((ty, raw)) = types.last_mut() {
                let (field, type_text) = parse_field(field, text);
                ty.fields.push(field);
                raw.push(type_text);
            }
        } else {
            let (name, open) = match head.strip_suffix(" ~") {
                Some(name) => (name, true),
                None => (head, false),
            };
            let ty = TypeDef { package: package.clone(), name: name.trim().to_owned(), text: text.to_owned(), open, fields: Vec::new() };
            by_name.insert(ty.definition(), types.len());
            types.push((ty, Vec::new()));
        }
    }
    let types = types
        .into_iter()
        .map(|(mut ty, raw)| {
            for (field, raw) in ty.fields.iter_mut().zip(&raw) {
                field.ty = resolve(raw, &ty.package, &by_name);
            }
            ty
        })
        .collect();
    Schema { types, by_name }
}

fn parse_field(head: &str, text: &str) -> (Field, String) {
    let mut words = head.split_whitespace();
    let mut field = Field {
        name: words.next().unwrap_or_default().to_owned(),
        ty: Type::Object,
        required: false,
        keys: Vec::new(),
        set: false,
        retain_keys: false,
        number: 0,
        text: text.to_owned(),
    };
    let ty = words.next().unwrap_or_default().to_owned();
    for word in words {
        match word {
            "!" => field.required = true,
            "set" => field.set = true,
            "keep" => field.retain_keys = true,
            other => {
                if let Some(number) = other.strip_prefix('=') {
                    field.number = number.parse().unwrap_or(0);
                } else if let Some(keys) = other.strip_prefix("key=") {
                    field.keys = keys.split(',').map(str::to_owned).collect();
                }
            }
        }
    }
    (field, ty)
}

fn resolve(text: &str, package: &str, by_name: &HashMap<String, usize>) -> Type {
    if let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        return Type::List(Box::new(resolve(inner, package, by_name)));
    }
    if let Some(inner) = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')) {
        return Type::Map(Box::new(resolve(inner, package, by_name)));
    }
    match text {
        "string" => Type::String,
        "int32" => Type::Int32,
        "int64" => Type::Int64,
        "bool" => Type::Bool,
        "bytes" => Type::Bytes,
        "intstr" => Type::IntOrString,
        "Quantity" => Type::Quantity,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        name => {
            let places = [package, "io.k8s.api.core.v1", "io.k8s.apimachinery.pkg.apis.meta.v1"];
            let found = places.iter().find_map(|place| by_name.get(&format!("{place}.{name}")));
            found.map_or(Type::Object, |index| Type::Ref(*index))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::kind::KINDS;

    #[test]
    fn every_kind_and_every_named_type_is_in_the_table() {
        for kind in KINDS {
            assert!(schema().of(kind.group, kind.kind).is_some(), "{kind:?}");
        }
        // A name that resolved to nothing would silently be an open object.
        let known = ["object"];
        for line in include_str!("schema.txt").lines().filter(|l| l.starts_with("  ")) {
            let ty = line.split_whitespace().nth(1).unwrap().trim_matches(|c| "[]{}".contains(c));
            if ty.starts_with(char::is_uppercase) {
                let builtin = ["Quantity", "Time", "MicroTime"].contains(&ty);
                let found = schema().types.iter().any(|t| t.name == ty);
                assert!(builtin || found || known.contains(&ty), "{line}");
            }
        }
    }

    #[test]
    fn merge_keys_are_read() {
        let pod = schema().of("", "Pod").unwrap();
        let Type::Ref(spec) = pod.field("spec").unwrap().ty else { panic!("spec is a type") };
        let containers = schema().at(spec).field("containers").unwrap();
        assert_eq!(containers.keys, ["name"]);
        assert!(containers.required);
        assert!(schema().at(spec).field("volumes").unwrap().retain_keys);
    }
}
