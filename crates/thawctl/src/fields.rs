//! The fields of a list's items: which there are, by the description of the API, and what an item has there.

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// What the items of a list can have.
#[derive(Debug, Default)]
pub(super) struct Fields {
    /// Schema of an item; none when the API does not describe it.
    schema: Option<Value>,
    /// Schemas that it refers to, by name.
    components: BTreeMap<String, Value>,
}

impl Fields {
    /// Those of a type of the API.
    pub(super) fn of<T: ToSchema>() -> Self {
        let mut components = Vec::new();
        T::schemas(&mut components);
        let json = |schema| serde_json::to_value(schema).unwrap_or_default();
        Self {
            schema: Some(json(T::schema())),
            components: components.into_iter().map(|(name, schema)| (name, json(schema))).collect(),
        }
    }

    /// Those that the items themselves have.
    pub(super) fn of_items() -> Self {
        Self::default()
    }

    /// Whether items can have a field at this path.
    ///
    /// # Errors
    /// A sentence that names the fields that there are.
    pub(super) fn check(&self, path: &[String], items: &[Value]) -> Result<(), String> {
        let mut schemas: Vec<&Value> = self.schema.iter().collect();
        let mut found: Vec<&Value> = items.iter().collect();
        for (depth, name) in path.iter().enumerate() {
            schemas = schemas.into_iter().flat_map(|schema| self.resolved(schema)).collect();
            if schemas.iter().any(|schema| schema.get("additionalProperties").is_some_and(|more| !more.is_boolean())) {
                // Names that users choose, such as those of labels.
                return Ok(());
            }
            let next: Vec<&Value> =
                schemas.iter().filter_map(|schema| named(schema.get("properties")?, name)).collect();
            let next_found: Vec<&Value> = found.iter().filter_map(|item| named(item, name)).collect();
            if next.is_empty() && next_found.is_empty() {
                // Without a schema and without items nothing can be known.
                if self.schema.is_none() && items.is_empty() {
                    return Ok(());
                }
                let before: String = path[..depth].iter().map(|name| format!(".{}", name.to_lowercase())).collect();
                let mut known: Vec<String> = schemas
                    .iter()
                    .filter_map(|schema| schema.get("properties"))
                    .chain(found.iter().copied())
                    .filter_map(Value::as_object)
                    .flat_map(|object| object.keys().map(|key| format!("{before}.{key}")))
                    .collect();
                known.sort();
                known.dedup();
                let given: String = path[..=depth].iter().map(|name| format!(".{name}")).collect();
                return Err(format!("there is no field `{given}`; there is {}", known.join(" ")));
            }
            (schemas, found) = (next, next_found);
        }
        Ok(())
    }

    /// A schema, or what it refers to.
    fn resolved<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(target) = schema.get("$ref").and_then(Value::as_str) {
            let name = target.rsplit('/').next().unwrap_or_default();
            return self.components.get(name).into_iter().flat_map(|schema| self.resolved(schema)).collect();
        }
        let alternatives = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
        let inner: Vec<&Value> = alternatives.flatten().flat_map(|schema| self.resolved(schema)).collect();
        if inner.is_empty() { vec![schema] } else { inner }
    }

    /// What an item has at this path.
    pub(super) fn find<'a>(item: &'a Value, path: &[String]) -> Option<&'a Value> {
        path.iter().try_fold(item, |value, name| named(value, name))
    }
}

/// The value of a key, whose name may be written as docker writes names: `CreatedAtMs` for `created_at_ms`.
fn named<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let object = object.as_object()?;
    object.get(name).or_else(|| {
        let folded = fold(name);
        object.iter().find(|(key, _)| fold(key) == folded).map(|(_, value)| value)
    })
}

fn fold(name: &str) -> String {
    name.chars().filter(|c| *c != '_' && *c != '-').flat_map(char::to_lowercase).collect()
}
