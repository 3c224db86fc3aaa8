alter table apps.apps add column permissions text[] not null default '{}';
alter table apps.apps add column certificate_sha256 text;
comment on column apps.apps.certificate_sha256 is 'Of the certificate that the package names; Android checks the signature.';
