{{/* What every pod that runs the program has in common. */}}

{{- define "cloudphone.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "cloudphone.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Settings that differ from pod to pod. */}}
{{- define "cloudphone.podEnv" -}}
- name: ADVERTISE_ADDRESS
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
# Clusters from 1.35 on copy it from the machine; elsewhere it is empty, which is no zone.
- name: ZONE
  valueFrom:
    fieldRef:
      fieldPath: metadata.labels['topology.kubernetes.io/zone']
{{- end -}}

{{/* Takes (list root secretName). */}}
{{- define "cloudphone.volumes" -}}
{{- $root := index . 0 -}}
- name: home
  emptyDir:
    sizeLimit: 64Mi
- name: secrets
  secret:
    secretName: {{ index . 1 }}
    defaultMode: 0440
    # A key that is missing is told in the pod's events.
    items:
      {{- range include "cloudphone.secretNames" $root | fromYamlArray }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- with $root.Values.storeAuthorities.existingSecret }}
- name: stores
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: {{ $root.Values.storeAuthorities.key }}
        path: {{ $root.Values.storeAuthorities.key }}
{{- end }}
{{- end -}}

{{- define "cloudphone.mounts" -}}
- name: home
  mountPath: /var/lib/cloudphone
- name: secrets
  mountPath: /run/secrets/cloudphone
  readOnly: true
{{- if .Values.storeAuthorities.existingSecret }}
- name: stores
  mountPath: /etc/cloudphone/stores
  readOnly: true
{{- end }}
{{- end -}}
