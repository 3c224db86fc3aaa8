alter table apps.packages add column icon_key text;
comment on column apps.packages.icon_key is
    'Where the icon of the content lies in the object store; null where it has none that can be shown, or was stored before icons were.';
