//! `kubectl --as`: who an administrator asks to be seen as. Pure.
//!
//! Kubernetes `endpoints/filters/impersonation`. Only members of `system:masters` may; there are no roles here that could
//! allow it to others.

use hyper::HeaderMap;

use super::{AUTHENTICATED, Identity, MASTERS};
use crate::api::ApiStatus;

const EXTRA: &str = "impersonate-extra-";

/// Who the request counts as: the caller, or who its `Impersonate-*` headers name.
///
/// # Errors
/// 403 when the caller may not, 500 for groups without a user, as the real server answers.
pub fn apply(headers: &HeaderMap, caller: Identity) -> Result<Identity, ApiStatus> {
    let all = |name: &str| -> Vec<String> { headers.get_all(name).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect() };
    let user = all("impersonate-user").into_iter().next().unwrap_or_default();
    let (mut groups, uid) = (all("impersonate-group"), all("impersonate-uid").into_iter().next().unwrap_or_default());
    let mut extra: Vec<(String, Vec<String>)> = Vec::new();
    for name in headers.keys() {
        if let Some(key) = name.as_str().strip_prefix(EXTRA) {
            extra.push((key.to_owned(), all(name.as_str())));
        }
    }
    if user.is_empty() {
        return if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            Ok(caller)
        } else {
            Err(ApiStatus::internal("requested groups, UID or extra without impersonating a user"))
        };
    }
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    if !caller.in_group(MASTERS) {
        let (plural, name) = match account {
            Some((_, name)) => ("serviceaccounts", name),
            None => ("users", user.as_str()),
        };
        let why = match account {
            Some((namespace, _)) => {
                format!("User {:?} cannot impersonate resource {plural:?} in API group \"\" in the namespace {namespace:?}", caller.user)
            }
            None => format!("User {:?} cannot impersonate resource {plural:?} in API group \"\" at the cluster scope", caller.user),
        };
        return Err(ApiStatus::forbidden("", plural, name, &why));
    }
    if groups.is_empty() {
        if let Some((namespace, _)) = account {
            groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        }
    }
    let anonymous = user == "system:anonymous" || groups.iter().any(|group| group == "system:unauthenticated");
    if !anonymous && !groups.iter().any(|group| group == AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    Ok(Identity { user, groups, uid, extra })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_administrator_is_seen_as_someone_else() {
        let admin = || Identity::new("system:admin", &[MASTERS, AUTHENTICATED]);
        let node = || Identity::new("system:node:a", &["system:nodes", AUTHENTICATED]);
        let asked = |who: Identity, pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, value.parse().unwrap());
            }
            apply(&headers, who)
        };
        assert_eq!(asked(admin(), &[]).unwrap(), admin());
        type Row<'a> = (&'a [(&'static str, &'static str)], &'static str, &'a [&'static str]);
        let rows: &[Row<'_>] = &[
            (&[("impersonate-user", "joe")], "joe", &[AUTHENTICATED]),
            (&[("impersonate-user", "joe"), ("impersonate-group", "a"), ("impersonate-group", "b")], "joe", &["a", "b", AUTHENTICATED]),
            (
                &[("impersonate-user", "system:serviceaccount:d:robot")],
                "system:serviceaccount:d:robot",
                &["system:serviceaccounts", "system:serviceaccounts:d", AUTHENTICATED],
            ),
            (&[("impersonate-user", "system:anonymous")], "system:anonymous", &[]),
        ];
        for (headers, user, groups) in rows {
            let seen = asked(admin(), headers).unwrap();
            assert_eq!((seen.user.as_str(), &seen.groups), (*user, &groups.iter().map(|g| (*g).to_owned()).collect()));
        }
        let refused = asked(node(), &[("impersonate-user", "system:admin"), ("impersonate-group", MASTERS)]).unwrap_err();
        assert_eq!(refused.code, 403);
        assert!(refused.message.contains("cannot impersonate resource \"users\""), "{}", refused.message);
        let refused = asked(node(), &[("impersonate-user", "system:serviceaccount:d:robot")]).unwrap_err();
        assert!(refused.message.contains("in the namespace \"d\""), "{}", refused.message);
        assert_eq!(asked(admin(), &[("impersonate-group", "a")]).unwrap_err().code, 500);
        assert_eq!(asked(admin(), &[("impersonate-extra-scopes", "a")]).unwrap_err().code, 500);
    }
}
