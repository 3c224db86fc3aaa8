{{/* Names, labels and numbers that several templates need. */}}

{{- define "cloudphone.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "cloudphone.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* By what a component is selected; takes (list root component). */}}
{{- define "cloudphone.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "cloudphone.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "cloudphone.labels" -}}
{{- $root := index . 0 -}}
{{ include "cloudphone.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The services and the ports that the program gives them. */}}
{{- define "cloudphone.ports" -}}
gateway: 30000
users: 30001
devices: 30002
apps: 30003
media: 30004
billing: 30005
notifications: 30006
{{- end -}}

{{/* What holds for a service: the defaults, and over them what is its own; takes (list root name). */}}
{{- define "cloudphone.service" -}}
{{- $root := index . 0 -}}
{{- $own := get $root.Values.services (index . 1) | default dict -}}
{{- mustMergeOverwrite (deepCopy $root.Values.defaults) (deepCopy $own) | toYaml -}}
{{- end -}}

{{- define "cloudphone.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* A scalar as text; YAML's numbers are floats, of which Go would write the larger ones with an exponent. */}}
{{- define "cloudphone.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}
{{ printf "%.0f" . }}
{{- else -}}
{{ toString . }}
{{- end -}}
{{- end -}}

{{/* Text as a part of a URL. */}}
{{- define "cloudphone.escaped" -}}
{{ urlquery . | replace "+" "%20" }}
{{- end -}}

{{/* The namespaces that nodes of this cluster's own are, one a line. */}}
{{- define "cloudphone.phones" -}}
{{- range .Values.devices.nodes -}}
{{- if hasPrefix "in-cluster://" (.endpoint | default "") -}}
{{ .endpoint | trimPrefix "in-cluster://" | splitList "?" | first }}
{{ end -}}
{{- end -}}
{{- end -}}
