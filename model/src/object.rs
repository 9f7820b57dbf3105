//! JSON objects that are nothing else: serde's derived code takes an array for a struct, too, field by field in an order that is nobody's
//! contract.

use serde::{Deserialize, Deserializer, de::Visitor, forward_to_deserialize_any};

/// A struct that is read from an object alone.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(MapsOnly(deserializer)).map(Self)
    }
}

/// For `deserialize_with` of a field.
///
/// # Errors
/// It is no object, or does not fit.
pub fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Object::deserialize(deserializer).map(|object| object.0)
}

/// The same where `null` stands for none.
///
/// # Errors
/// It is neither, or does not fit.
pub fn optional_object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Option::<Object<T>>::deserialize(deserializer).map(|object| object.map(|object| object.0))
}

/// Asks for a map where a struct is wanted, which may be either.
struct MapsOnly<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for MapsOnly<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_any(visitor)
    }
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use crate::{Egress, TenantLimits};

    #[test]
    fn an_array_is_no_object() {
        for wrong in [r#"{"egress": ["public"]}"#, r#"{"egress": ["none", null]}"#, r#"{"egress": "none"}"#] {
            assert!(serde_json::from_str::<TenantLimits>(wrong).is_err(), "{wrong}");
        }
        let limits: TenantLimits = serde_json::from_str(r#"{"burst": 3, "egress": {"mode": "none"}}"#).unwrap();
        assert_eq!((limits.burst, limits.egress), (3, Egress::None));
    }
}
