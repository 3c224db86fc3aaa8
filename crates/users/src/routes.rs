//! The URL map.

use axum::middleware::from_fn;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Users;
use crate::account::{admin, api as account, contact, manage, overview};
use crate::api_key::{api as api_key, change};
use crate::audit::{api as audit, export, origin};
use crate::captcha::api as captcha;
use crate::reset::api as reset;
use crate::role::{api as role, permission};
use crate::session::{api as session, history, own};
use crate::two_factor::{admin as lost_factor, api as two_factor};

/// The routes of the service.
pub fn router(state: Users) -> OpenApiRouter {
    routes().layer(from_fn(origin::remember)).with_state(state)
}

/// What the routes say of themselves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

fn routes() -> OpenApiRouter<Users> {
    OpenApiRouter::new()
        .routes(routes!(account::register))
        .routes(routes!(session::login))
        .routes(routes!(session::verify_two_factor))
        .routes(routes!(captcha::get_captcha))
        .routes(routes!(two_factor::two_factor_status))
        .routes(routes!(two_factor::generate_two_factor))
        .routes(routes!(two_factor::enable_two_factor))
        .routes(routes!(two_factor::disable_two_factor))
        .routes(routes!(session::refresh))
        .routes(routes!(session::logout))
        .routes(routes!(account::change_password))
        .routes(routes!(reset::forgot_password))
        .routes(routes!(reset::verify_reset_token))
        .routes(routes!(reset::reset_password))
        .routes(routes!(account::find_me))
        .routes(routes!(own::list_sessions, own::end_other_sessions))
        .routes(routes!(own::end_session))
        .routes(routes!(history::login_history))
        .routes(routes!(account::find_own_user))
        .routes(routes!(account::find_profile, account::update_profile))
        .routes(routes!(admin::list_users, manage::create_user))
        .routes(routes!(overview::user_stats))
        .routes(routes!(overview::count_users))
        .routes(routes!(overview::name_users))
        .routes(routes!(manage::delete_users))
        .routes(routes!(
            account::find_user,
            manage::update_user,
            manage::delete_user
        ))
        .routes(routes!(manage::set_password))
        .routes(routes!(lost_factor::remove_two_factor))
        .routes(routes!(manage::update_preferences))
        .routes(routes!(role::list_roles, role::create_role))
        .routes(routes!(
            role::find_role,
            role::update_role,
            role::delete_role
        ))
        .routes(routes!(role::give_permissions, role::take_permissions))
        .routes(routes!(permission::list_permissions))
        .routes(routes!(permission::my_permissions))
        .routes(routes!(permission::my_menus))
        .routes(routes!(api_key::create_api_key, api_key::list_api_keys))
        .routes(routes!(api_key::list_api_keys_of_user))
        .routes(routes!(api_key::api_key_statistics))
        .routes(routes!(
            api_key::find_api_key,
            change::replace_api_key,
            change::update_api_key,
            change::delete_api_key
        ))
        .routes(routes!(change::revoke_api_key))
        .routes(routes!(change::toggle_api_key))
        .routes(routes!(api_key::rotate_api_key))
        .routes(routes!(audit::list_audit_log))
        .routes(routes!(audit::search_audit_log))
        .routes(routes!(audit::audit_statistics))
        .routes(routes!(export::export_audit_log))
        .routes(routes!(audit::list_audit_log_of_user))
        .routes(routes!(audit::list_audit_log_of_resource))
        .routes(routes!(audit::find_audit_entry))
        // For services alone, which is why no document names it.
        .route(
            "/internal/users/{user_id}/contact",
            get(contact::give_contact),
        )
        .route("/internal/users/census", get(contact::count_accounts))
        .route("/internal/users", get(contact::list_accounts))
}
